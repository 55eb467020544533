/** A folder with a disk gets its name. */
import { open, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { syncDir } from '../lib/files.ts';

/**
 * Renames, then syncs: the disk, its folder, the folder above. In this order the first of them brings all to the disk where a journal
 * keeps the order of what was done (a snapshot of btrfs that was renamed asks for a whole commit), and the others find nothing to do.
 * Nobody knows of the disk before this has returned, so it does not matter what a crash leaves under its name.
 */
export const publishDisk = async (temp: string, final: string): Promise<void> => {
  await rename(temp, final);
  try {
    await using disk = await open(join(final, 'disk.raw'), 'r');
    await disk.sync();
    await syncDir(final);
    await syncDir(dirname(final));
  } catch (error) {
    await rename(final, temp); // to be removed as what is half made
    throw error;
  }
};
