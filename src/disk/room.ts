/** Room on the file system of a data directory: what is free, what is kept back, and the refusal where that is not enough. */
import { statfs } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { formatBytes } from '../lib/size.ts';

/** For the records, the logs, and the disks of VMs that run: holes in them fill up. */
const RESERVE_MOST = 1024 ** 3;
const RESERVE_SHARE = 50;

export interface Room {
  free_bytes: number;
  reserve_bytes: number;
}

export const roomIn = async (dir: string): Promise<Room> => {
  const { bavail, blocks, bsize } = await statfs(dir);
  const reserve_bytes = Math.min(RESERVE_MOST, Math.floor((blocks * bsize) / RESERVE_SHARE));
  return { free_bytes: bavail * bsize, reserve_bytes };
};

/** Refuses what would take more than there is before the first byte is written. `what` completes "Cannot …". */
export const needRoom = async (dir: string, what: string, needed_bytes: number): Promise<void> => {
  const { free_bytes, reserve_bytes } = await roomIn(dir);
  if (needed_bytes + reserve_bytes <= free_bytes) return;
  const [needed, reserve, free] = [needed_bytes, reserve_bytes, free_bytes].map(formatBytes);
  const takes = needed_bytes === 0 ? '' : `it takes ${needed} and `;
  const why = `${takes}${reserve} is kept in reserve, but the data directory has ${free} free`;
  throw new Fault('no_room', `Cannot ${what}: ${why}.`, {
    hint: `free space in ${dir}; nexusctl gc --dry-run shows what is not needed any more`,
  });
};
