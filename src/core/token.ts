/** The token for a provider's API: from the environment of the daemon, or from the file that the provider's config names. */
import { open } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import type { Provider } from '../api/provider.ts';
import type { Host } from './host.ts';

const MAX_TOKEN = 1024;

const fromFile = async ({ name }: Provider, path: string): Promise<string> => {
  try {
    await using file = await open(path, 'r');
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_TOKEN), 0, MAX_TOKEN, 0);
    const token = buffer.toString('latin1', 0, bytesRead).trim();
    if (/^[\x21-\x7e]+$/.test(token)) return token;
    throw new Error('it is no single word');
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Fault('host', `Cannot read the token of provider '${name}' from ${path}: ${why}.`, { cause: error });
  }
};

/** Gives the token for URLs of the API's own host, and none for any other. */
export const tokenFor = async (host: Host, provider: Provider): Promise<(url: URL) => string | undefined> => {
  const { api, token_file } = provider.config;
  const own = api === undefined ? null : URL.parse(api);
  const token = token_file === undefined ? host.github_token : await fromFile(provider, token_file);
  return url => (own !== null && url.origin === own.origin ? token : undefined);
};
