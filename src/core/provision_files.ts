/** The files that a VM is given. Written again they are the same: a daemon that died in between leaves them to the next. */
import { posix } from 'node:path';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { GivenFile } from '../api/provision.ts';
import type { Files } from '../guest/files.ts';
import { LostError } from '../guest/link.ts';
import { pause } from '../lib/deadline.ts';
import type { VmRecord } from '../store/store.ts';
import type { Host } from './host.ts';

/** Behind `nexus.sh`, which has the environment of the image: the VM's own goes before it. */
const LOGINS = '/etc/profile.d/nexus_vm.sh';

/** Between two tries to write a file. */
const LEAST_MS = 20;
const MOST_MS = 1000;

const quoted = (value: string): string => `'${value.replaceAll("'", "'\\''")}'`;

const loginText = (env: Readonly<Record<string, string>>): string =>
  Object.entries(env)
    .map(([name, value]) => `export ${name}=${quoted(value)}\n`)
    .join('');

/** Nothing is known of what the guest did: the connection was lost, or the answer was late. */
const unheard = (error: unknown): boolean =>
  error instanceof Fault &&
  ((error.code === 'timeout' && error.reason === undefined) || error.cause instanceof LostError);

/** Does it again until the guest has said how it went. What `signal` says ends it. */
const heard = async (deed: () => Promise<unknown>, signal: AbortSignal): Promise<void> => {
  for (let wait = LEAST_MS; ; wait = Math.min(2 * wait, MOST_MS)) {
    try {
      await deed();
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (!unheard(error)) throw error;
      await pause(wait, signal);
    }
  }
};

/** Writes it whole, however often the connection is lost. Directories on the way are made; they belong to root. */
export const writeFile = (
  files: Files,
  { path, content, bytes_base64, ...as }: GivenFile,
  signal: AbortSignal,
): Promise<void> => {
  const bytes = content === undefined ? Buffer.from(bytes_base64 ?? '', 'base64') : Buffer.from(content, 'utf8');
  const once = () => files.write(path, as, Readable.from([bytes]), signal);
  return heard(async () => {
    try {
      await once();
    } catch (error) {
      if (!(error instanceof Fault && error.code === 'not_found')) throw error;
      await files.mkdir(posix.dirname(path), { parents: true, mode: '0755' }, signal);
      await once();
    }
  }, signal);
};

/**
 * Commands have the environment from the daemon; this is for logins on the console and the like. A guest without a place for it does without.
 * What another VM left on the disk goes.
 */
const writeLogins = async (host: Host, files: Files, vm: VmRecord, signal: AbortSignal): Promise<void> => {
  const without = (error: unknown) => {
    if (signal.aborted) throw error;
    host.log.info({ err: error, vm: vm.id }, 'logins of a guest do not get the environment of their VM');
  };
  const bytes = Buffer.from(loginText(vm.env));
  const none = (error: unknown) => {
    if (!(error instanceof Fault && error.code === 'not_found')) throw error;
  };
  const once = () =>
    bytes.length === 0
      ? files.remove(LOGINS, false, signal).catch(none)
      : files.write(LOGINS, { mode: '0644' }, Readable.from([bytes]), signal);
  await host.step('provision.logins', () => heard(once, signal).catch(without)).catch(without);
};

/** The first that cannot be written ends it, with its own fault. */
export const writeGiven = async (
  host: Host,
  files: Files,
  vm: VmRecord,
  given: readonly GivenFile[],
  signal: AbortSignal,
): Promise<void> => {
  for (const file of given) await host.step('provision.file', () => writeFile(files, file, signal));
  await writeLogins(host, files, vm, signal);
};
