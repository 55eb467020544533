/** Records that must be written, whatever the disk says at first. */
import { Fault } from '../api/fault.ts';
import { pause } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';

const LEAST_MS = 100;
const MOST_MS = 5000;

const OF_THE_DISK: readonly unknown[] = ['ENOSPC', 'EDQUOT', 'EIO', 'EROFS'];

/** True for a disk that is full or out of order: that may pass. */
export const cannotWrite = (error: unknown): boolean =>
  error instanceof Fault
    ? error.code === 'no_room' || error.code === 'host'
    : error instanceof Error && 'code' in error && OF_THE_DISK.includes(error.code);

/** Does it again and again while the disk is full or out of order, until the daemon stops; then it throws what was last thrown. */
export const insist = async <T>(
  host: { readonly log: Log; readonly closing: AbortSignal },
  what: string,
  work: () => Promise<T>,
): Promise<T> => {
  for (let wait = LEAST_MS; ; wait = Math.min(wait * 2, MOST_MS)) {
    try {
      return await work();
    } catch (error) {
      if (!cannotWrite(error) || host.closing.aborted) throw error;
      host.log.error({ err: error }, `${what} cannot be stored yet; it is tried again`);
      await pause(wait, host.closing).catch(() => {
        throw error;
      });
    }
  }
};
