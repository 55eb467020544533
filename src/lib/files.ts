/** Files: atomic writes, and the removal of trees inside one directory only. */
import { createHash } from 'node:crypto';
import { lstatSync, statSync } from 'node:fs';
import { lstat, mkdir, open, realpath, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, relative, resolve, sep } from 'node:path';
import { Ahead } from './ahead.ts';

export const syncDir = async (dir: string): Promise<void> => {
  const handle = await open(dir, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};

export const syncFile = async (path: string): Promise<void> => {
  const handle = await open(path, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};

/** Makes a finished file (or directory) visible under its name: fsync, rename, fsync of the folder. */
export const publish = async (temp: string, final: string): Promise<void> => {
  const stat = await lstat(temp);
  await (stat.isDirectory() ? syncDir(temp) : syncFile(temp));
  await rename(temp, final);
  await syncDir(dirname(final));
};

/** Writes a small file so that it is either the old or the new one, whatever happens. */
export const writeAtomic = async (path: string, data: string | Uint8Array, mode = 0o600): Promise<void> => {
  const temp = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  const handle = await open(temp, 'w', mode);
  try {
    await handle.writeFile(data);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temp, path);
  await syncDir(dirname(path));
};

/** Removes a tree that lies inside `root`. Refuses `root` itself, anything outside, and a symlinked way to it. */
export const removeTree = async (root: string, path: string): Promise<void> => {
  const inside = relative(resolve(root), resolve(path));
  if (inside === '' || inside === '..' || inside.startsWith(`..${sep}`) || resolve(root, inside) !== resolve(path)) {
    throw new Error(`will not remove ${path}: it is not inside ${root}`);
  }
  const parent = await realpath(dirname(path)).catch(() => undefined);
  if (parent === undefined) return;
  const real = relative(await realpath(root), parent);
  if (real === '..' || real.startsWith(`..${sep}`))
    throw new Error(`will not remove ${path}: a link leads out of ${root}`);
  await rm(path, { recursive: true, force: true, maxRetries: 3 });
};

/** Looked at once: it is known to the kernel as a rule, and a thread for it costs more. */
export const exists = async (path: string): Promise<boolean> => {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return false;
  }
};

/** Looked at once, as in `exists`. */
const isDir = (path: string): boolean => {
  try {
    return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
  } catch {
    return false;
  }
};

/** Makes a directory and those above it. Not by mkdir's own `recursive`, which never returns for a path below /proc. */
export const ensureDir = async (path: string, mode = 0o755): Promise<string> => {
  if (isDir(path)) return path;
  if (dirname(path) !== path) await ensureDir(dirname(path), mode);
  await mkdir(path, { mode }).catch((error: unknown) => {
    if (!isDir(path)) throw error; // else somebody made it just now
  });
  return path;
};

/** SHA-256 of a file, lower-case hex. */
export const sha256File = async (path: string, signal?: AbortSignal): Promise<string> => {
  await using handle = await open(path, 'r');
  const hash = createHash('sha256');
  const ahead = new Ahead(handle);
  for (;;) {
    signal?.throwIfAborted();
    const piece = await ahead.next();
    if (piece.length === 0) return hash.digest('hex');
    hash.update(piece);
  }
};
