import { Unreachable } from '../client/transport.ts';
import { VERSION } from '../lib/version.ts';
import { type Cli, out } from './cli.ts';
import { details, json } from './show.ts';

/** Our version, and the daemon's where one answers. */
export const showVersion = async (cli: Cli): Promise<void> => {
  const daemon = await cli.nexus.daemon.get().catch((error: unknown) => {
    if (error instanceof Unreachable) return undefined;
    throw error;
  });
  const versions = { nexusctl: VERSION, nexusd: daemon?.version ?? null };
  out(cli.json ? json(versions) : details({ nexusctl: VERSION, nexusd: daemon?.version ?? 'does not answer' }));
};
