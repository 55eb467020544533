/**
 * Folders that are made once and kept between runs of the tests.
 *
 * INVARIANTS: a folder is complete or not there (made beside it, then renamed). Of processes that want the same one, one makes it
 * while the others wait on its lock; a lock whose process is dead is taken over.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { poll } from '../../src/lib/deadline.ts';
import { ensureDir } from '../../src/lib/files.ts';

const CACHE = join(import.meta.dirname, '../../.cache');

const parsed = async <T>(dir: string): Promise<T | undefined> =>
  readFile(join(dir, 'record.json'), 'utf8').then(
    text => JSON.parse(text),
    () => undefined,
  );

const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

/** Takes the lock, or undefined if a living process has it. */
const lock = async (path: string): Promise<true | undefined> => {
  try {
    await writeFile(path, String(process.pid), { flag: 'wx' });
    return true;
  } catch {
    const pid = Number(await readFile(path, 'utf8').catch(() => '0'));
    if (pid > 0 && !alive(pid)) await rm(path, { force: true });
    return undefined;
  }
};

/** Removes what an older key left, if nothing can be using it any more. */
const prune = async (shelf: string, key: string): Promise<void> => {
  const name = key.slice(0, key.lastIndexOf('-') + 1);
  for (const other of await readdir(shelf)) {
    const path = join(shelf, other);
    const old = other.startsWith(name) && !other.startsWith(key) && Date.now() - (await stat(path)).mtimeMs > 3_600_000;
    if (old) await rm(path, { recursive: true, force: true });
  }
};

/** The record of the folder <repo>/.cache/<shelf>/<key>, made by `make` if it is not there yet. */
export const cached = async <T extends object>(
  shelf: string,
  key: string,
  make: (dir: string) => Promise<T>,
): Promise<T & { dir: string }> => {
  const dir = join(await ensureDir(join(CACHE, shelf)), key);
  const guard = `${dir}.lock`;
  const found = await poll(`the cache of ${key}`, 300_000, async () => (await parsed<T>(dir)) ?? (await lock(guard)), {
    every_ms: 200,
  });
  if (found !== true) return { ...found, dir };
  const temp = `${dir}.${randomUUID()}.tmp`;
  try {
    const now = await parsed<T>(dir);
    if (now !== undefined) return { ...now, dir };
    await mkdir(temp, { mode: 0o755 });
    const record = await make(temp);
    await writeFile(join(temp, 'record.json'), JSON.stringify(record));
    await rm(dir, { recursive: true, force: true });
    await rename(temp, dir);
    await prune(join(CACHE, shelf), key);
    return { ...record, dir };
  } finally {
    await rm(temp, { recursive: true, force: true });
    await rm(guard, { force: true });
  }
};
