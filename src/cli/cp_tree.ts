/** Trees of this host whose names may be any bytes: paths are buffers. */
import { chmod, lstat, readdir, rename, rm, utimes } from 'node:fs/promises';
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';

const below = (dir: Buffer, name: Buffer): Buffer => Buffer.concat([dir, Buffer.from('/'), name]);

/** Removes device nodes, which only root can have unpacked. */
export const scrub = async (dir: Buffer): Promise<void> => {
  for (const name of await readdir(dir, { encoding: 'buffer' })) {
    const path = below(dir, name);
    const info = await lstat(path);
    if (info.isBlockDevice() || info.isCharacterDevice()) await rm(path);
    else if (info.isDirectory()) await scrub(path);
  }
};

/** A directory can only be moved elsewhere by one who may write in it. */
const move = async (from: Buffer, to: Buffer, mode: number, isDirectory: boolean): Promise<void> => {
  const closed = isDirectory && (mode & 0o200) === 0 && process.getuid?.() !== 0;
  if (closed) await chmod(from, mode | 0o200);
  await rename(from, to);
  if (closed) await chmod(to, mode);
};

/** Moves a file, or a directory and all in it, to a path: directories that are there stay, other files are replaced. */
export const moveInto = async (from: Buffer, to: Buffer): Promise<void> => {
  const info = await lstat(from);
  const there = await lstat(to).catch(() => undefined);
  const mode = info.mode & 0o7777;
  if (there === undefined || (!info.isDirectory() && !there.isDirectory()))
    return await move(from, to, mode, info.isDirectory());
  if (!info.isDirectory() || !there.isDirectory()) {
    const why = there.isDirectory() ? 'a directory is there' : 'what is there is no directory';
    throw new Fault('exists', `Cannot copy to '${plain(to.toString())}': ${why}.`);
  }
  for (const name of await readdir(from, { encoding: 'buffer' })) await moveInto(below(from, name), below(to, name));
  await chmod(to, mode);
  await utimes(to, info.atime, info.mtime);
};
