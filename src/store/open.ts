/** Opens the state of a data directory: `state.db`. The caller holds the directory's lock. */
import { open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { ensureDir } from '../lib/files.ts';
import { assetStore } from './asset.ts';
import { buildStore } from './build.ts';
import { imageStore } from './image.ts';
import { jobStore } from './job.ts';
import { migrate, refuseNewer } from './migrate.ts';
import { MIGRATIONS } from './migrations.ts';
import { noteStore } from './note.ts';
import { providerStore } from './provider.ts';
import { type Db, guarded, openDb } from './sqlite.ts';
import type { StateStore } from './store.ts';
import { templateStore } from './template.ts';
import { vmStore } from './vm.ts';
import { wsStore } from './ws.ts';

/** Makes the file for its owner alone. One that is there is not even opened: closing it would drop this process's locks on it. */
const createPrivate = async (path: string): Promise<void> => {
  try {
    await (await open(path, 'wx', 0o600)).close();
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  }
};

/**
 * A new state knows no disk, and disks that no record knows are what gc removes. So none is begun beside disks: the old one was lost, or
 * has yet to be brought back.
 */
const refuseToForget = async (data_dir: string, path: string): Promise<void> => {
  if (((await stat(path).catch(() => undefined))?.size ?? 0) > 0) return;
  for (const kind of ['workspaces', 'images']) {
    const disks = (await readdir(join(data_dir, kind)).catch(() => [])).filter(name => ID_PATTERN.test(name));
    if (disks.length === 0) continue;
    const why = `${path} is missing or empty, but ${join(data_dir, kind)} has disks (${disks.length})`;
    throw new Fault('host', `Cannot open the state: ${why}.`, {
      hint: `put state.db back, with state.db-wal if there is one; to begin anew, move ${kind} elsewhere`,
    });
  }
};

/** A commit is on the disk when it returns: WAL with a sync at every commit. */
const PRAGMAS = 'pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on;';

/** The same store, with what SQLite says of the disk turned into faults. */
const faulted = <T extends object>(path: string, store: T): T =>
  Object.fromEntries(
    Object.entries(store).map(([name, verb]: [string, (...args: unknown[]) => Promise<unknown>]) => [
      name,
      (...args: unknown[]) => guarded(path, () => verb(...args)),
    ]),
  ) as T;

const close = async (db: Db, raw: DatabaseSync): Promise<void> => {
  if (!raw.isOpen) return;
  await db.connection().execute(async () => {}); // behind all who wait for the connection
  await db.destroy();
};

/** Opens, or makes, the state in `data_dir` and brings it to the newest version. */
export const openStore = async (data_dir: string, migrations = MIGRATIONS): Promise<StateStore> => {
  const path = join(data_dir, 'state.db');
  return guarded(path, async () => {
    await ensureDir(data_dir, 0o700);
    await refuseToForget(data_dir, path);
    await createPrivate(path);
    refuseNewer(path, migrations);
    const raw = new DatabaseSync(path, { timeout: 5000 });
    try {
      raw.exec(PRAGMAS);
      await migrate(raw, path, migrations);
    } catch (error) {
      raw.close();
      throw error;
    }
    const db = openDb(raw);
    const verbs = {
      ...vmStore(db),
      ...wsStore(db),
      ...imageStore(db),
      ...templateStore(db),
      ...buildStore(db),
      ...providerStore(db),
      ...jobStore(db),
      ...noteStore(db),
    };
    const { kernel, rootfs, firecracker } = assetStore(db);
    const assets = {
      kernel: faulted(path, kernel),
      rootfs: faulted(path, rootfs),
      firecracker: faulted(path, firecracker),
    };
    return { ...faulted(path, verbs), assets, [Symbol.asyncDispose]: () => close(db, raw) };
  });
};
