/** The length of a disk: it grows and never shrinks. */
import { open } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { formatBytes } from '../lib/size.ts';

/** `ENOENT` and its like, of whatever was thrown. */
export const errno = (error: unknown): string | undefined =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;

/** Opens a disk for writing and sets its length. `sync`: it is on the disk when this returns. */
export const lengthen = async (path: string, size_bytes: number, noun: string, sync = true): Promise<void> => {
  await using handle = await open(path, 'r+');
  const { size } = await handle.stat();
  if (size_bytes < size)
    throw new Fault(
      'invalid',
      `Cannot make ${noun} ${formatBytes(size_bytes)} long: it has ${formatBytes(size)} already, and disks do not shrink.`,
    );
  if (size_bytes > size) await handle.truncate(size_bytes);
  if (sync) await handle.sync();
};
