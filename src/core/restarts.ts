/**
 * Starts that the daemon owes: after an end that the VM's policy or its guest wants to be followed by a start, and after a start of the host.
 *
 * INVARIANTS: the record's `restart_at_ms` is the truth, the timer here is its alarm alone. Whoever an alarm wakes takes the VM's lock and reads
 * the record again, so a start, stop or delete that came first has called it off. At most one alarm a VM.
 */
import type { Vm } from '../api/vm.ts';

/** Times of automatic starts, ms. */
export interface RestartTimes {
  /** From the first end to the start after it. Doubled for each end that comes soon. */
  readonly least: number;
  readonly most: number;
  /** A VM that was up for this long begins anew with `least`. */
  readonly steady: number;
}

export const RESTART_TIMES: RestartTimes = { least: 1000, most: 60_000, steady: 60_000 };

/** How a VM ended that nobody had asked to stop. */
export type Ending = 'crash' | 'poweroff' | 'reboot';

/** Who holds the lock of a VM that the daemon starts by itself. */
export const OWED_START = 'an automatic start';

type Owed = Pick<Vm, 'restart_at_ms' | 'restart_count'>;

export const NOT_OWED: Owed = { restart_at_ms: null, restart_count: 0 };

const wants = (policy: Vm['restart'], ending: Ending): boolean =>
  ending === 'reboot' || policy === 'always' || (policy === 'on-crash' && ending === 'crash');

/** What becomes of a VM after an end, or after an automatic start that failed (`up_ms` 0). A guest's first reboot waits for nothing. */
export const afterEnd = (
  { restart, restart_count }: Pick<Vm, 'restart' | 'restart_count'>,
  { ending, up_ms, now_ms, times }: { ending: Ending; up_ms: number; now_ms: number; times: RestartTimes },
): Owed => {
  if (!wants(restart, ending)) return NOT_OWED;
  const before = up_ms >= times.steady ? 0 : restart_count;
  const doublings = ending === 'reboot' ? before - 1 : before;
  const delay = doublings < 0 ? 0 : Math.min(times.most, times.least * 2 ** doublings);
  return { restart_at_ms: now_ms + delay, restart_count: before + 1 };
};

export class Restarts implements Disposable {
  readonly #timers = new Map<string, NodeJS.Timeout>();
  readonly #most_ms: number;
  readonly #onDue: (id: string) => void;
  #open = true;

  constructor(most_ms: number, onDue: (id: string) => void) {
    this.#most_ms = most_ms;
    this.#onDue = onDue;
  }

  /** Sets the alarm of a VM; one in the past rings at once. The host's clock may have been set back: no alarm is further away than the ceiling. */
  at(id: string, at_ms: number): void {
    if (!this.#open) return;
    clearTimeout(this.#timers.get(id));
    const ring = () => {
      this.#timers.delete(id);
      this.#onDue(id);
    };
    const delay = Math.min(Math.max(0, at_ms - Date.now()), this.#most_ms);
    this.#timers.set(id, setTimeout(ring, delay));
  }

  [Symbol.dispose](): void {
    this.#open = false;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }
}
