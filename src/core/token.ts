/** The token for a provider's API: from the environment of the daemon, or from the file that the provider's config names. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import type { Provider } from '../api/provider.ts';
import type { Host } from './host.ts';

const MAX_TOKEN = 1024;

/** The one place that the environment's token is for, unless the environment itself names another. */
const GITHUB = 'https://api.github.com';

const fromFile = async ({ name }: Provider, path: string): Promise<string> => {
  try {
    // a pipe that nobody writes to would hold up the open
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    if (!(await file.stat()).isFile()) throw new Error('it is no regular file');
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_TOKEN), 0, MAX_TOKEN, 0);
    const token = buffer.toString('latin1', 0, bytesRead).trim();
    if (/^[\x21-\x7e]+$/.test(token)) return token;
    throw new Error('it is no single word');
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Fault('host', `Cannot read the token of provider '${name}' from ${path}: ${why}.`, { cause: error });
  }
};

/**
 * Gives the token for URLs of the API's own origin, and none for any other. Who may change a row may name any `api`: the environment's
 * token, which is not his, does not follow there.
 */
export const tokenFor = async (
  host: Pick<Host, 'github_token' | 'github_api'>,
  provider: Provider,
): Promise<(url: URL) => string | undefined> => {
  const { api, token_file } = provider.config;
  const own = api === undefined ? undefined : URL.parse(api)?.origin;
  if (token_file !== undefined) {
    const token = await fromFile(provider, token_file);
    return url => (url.origin === own ? token : undefined);
  }
  const trusted = URL.parse(host.github_api ?? GITHUB)?.origin;
  return url => (url.protocol === 'https:' && url.origin === own && own === trusted ? host.github_token : undefined);
};
