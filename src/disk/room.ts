/** Room on the file system of a data directory: what is free, what is kept back, and the refusal where that is not enough. */
import { stat, statfs } from 'node:fs/promises';
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

/** What work that runs has been told it may take. */
export interface RoomPromise {
  bytes: number;
  /** What was free when it was told so, without what others have taken that have ended since. */
  free_bytes: number;
}

/** What is still to be taken: what went since the first of them is what they took. */
const stillDue = (promises: ReadonlySet<RoomPromise>, free_bytes: number): number => {
  const all = [...promises];
  const gone = Math.max(0, ...all.map(one => one.free_bytes - free_bytes));
  return Math.max(0, all.reduce((sum, one) => sum + one.bytes, 0) - gone);
};

/**
 * Refuses what would take more than there is before the first byte is written; gives what is free. `what` completes "Cannot …". Work that
 * takes nothing at once does not mind what is promised.
 */
export const needRoom = async (
  dir: string,
  what: string,
  needed_bytes: number,
  promises: ReadonlySet<RoomPromise>,
): Promise<Room> => {
  const room = await roomIn(dir);
  const { free_bytes, reserve_bytes } = room;
  const due_bytes = needed_bytes === 0 ? 0 : stillDue(promises, free_bytes);
  if (needed_bytes + due_bytes + reserve_bytes <= free_bytes) return room;
  const [needed, due, reserve, free] = [needed_bytes, due_bytes, reserve_bytes, free_bytes].map(formatBytes);
  const takes = needed_bytes === 0 ? '' : `it takes ${needed} and `;
  const others = due_bytes === 0 ? '' : `${due} is for work that runs, `;
  const why = `${takes}${others}${reserve} is kept in reserve, but the data directory has ${free} free`;
  throw new Fault('no_room', `Cannot ${what}: ${why}.`, {
    hint: `free space in ${dir}; nexusctl gc --dry-run shows what is not needed any more`,
  });
};

/** The same for work that takes them little by little. */
export const promiseRoom = async (
  dir: string,
  what: string,
  bytes: number,
  promises: Set<RoomPromise>,
): Promise<Disposable> => {
  const { free_bytes } = await needRoom(dir, what, bytes, promises);
  const promise = { bytes, free_bytes };
  promises.add(promise); // nobody else was asked between the look and this
  const over = () => {
    // it is taken to have taken all of it, or the others would seem to have done so
    if (promises.delete(promise)) for (const other of promises) other.free_bytes -= bytes;
  };
  return { [Symbol.dispose]: over };
};

/** The same for a file outside the data directory. On a file system of its own nothing is kept back, and nothing promised. */
export const promiseRoomAt = async (
  data: string,
  dir: string,
  what: string,
  bytes: number,
  promises: Set<RoomPromise>,
): Promise<Disposable | undefined> => {
  const [here, there] = await Promise.all([stat(data), stat(dir)]);
  if (here.dev === there.dev) return promiseRoom(data, what, bytes, promises);
  const { free_bytes } = await roomIn(dir);
  if (bytes <= free_bytes) return undefined;
  const [needed, free] = [bytes, free_bytes].map(formatBytes);
  throw new Fault('no_room', `Cannot ${what}: it takes ${needed}, but ${dir} has ${free} free.`);
};
