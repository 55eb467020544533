/** Whether this host slept, or its clock was set. */

/**
 * Says whether the clock has gone away from the time that stands still while the host sleeps (CLOCK_MONOTONIC), by more than `most_ms` since it was
 * last said so.
 */
export const clockJumps = (
  most_ms: number,
  { clock, awake } = { clock: () => Date.now(), awake: () => performance.now() },
): (() => boolean) => {
  let before = clock() - awake();
  return () => {
    const now = clock() - awake();
    if (Math.abs(now - before) <= most_ms) return false;
    before = now;
    return true;
  };
};
