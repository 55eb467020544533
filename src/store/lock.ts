/**
 * One daemon a data directory.
 *
 * INVARIANTS: the holder has an exclusive SQLite transaction open on `daemon.lock` from start to end; the kernel drops it with
 * the process, however that ends. Nobody opens that file in another way, not even to look at it: when a process closes any
 * descriptor of a file, it loses its POSIX locks on that file.
 */
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Fault } from '../api/fault.ts';
import { ensureDir } from '../lib/files.ts';
import { asFault, isBusy } from './sqlite.ts';

/** Takes the data directory for this process, or throws `in_use` at once. */
export const lockDataDir = async (data_dir: string): Promise<AsyncDisposable> => {
  const path = join(data_dir, 'daemon.lock');
  let db: DatabaseSync | undefined;
  try {
    await ensureDir(data_dir, 0o700);
    db = new DatabaseSync(path, { timeout: 0 });
    db.exec('begin exclusive');
  } catch (error) {
    db?.close();
    if (!isBusy(error)) throw asFault(error, path);
    throw new Fault('in_use', `Cannot use ${data_dir}: another daemon runs on it.`, {
      hint: 'Stop that daemon first, or give this one a data directory of its own.',
      cause: error,
    });
  }
  const held = db;
  return {
    [Symbol.asyncDispose]: async () => {
      if (held.isOpen) held.close();
    },
  };
};
