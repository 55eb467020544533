/**
 * Named locks with a holder that can be asked to let go.
 *
 * INVARIANTS: at most one holder a key. Waiters are served in order. A key without holder and waiters is not in the map.
 */

export interface Held extends AsyncDisposable {
  /** Aborted when somebody preempts this holder; it must unwind and release. */
  readonly signal: AbortSignal;
}

interface Entry {
  holder: string;
  abort: AbortController;
  /** Resolves when the holder has released. */
  released: PromiseWithResolvers<void>;
}

export class Locks {
  readonly #held = new Map<string, Entry>();
  readonly #queues = new Map<string, Promise<void>>();

  /** The name of the holder, or undefined if the key is free. */
  holder(key: string): string | undefined {
    return this.#held.get(key)?.holder;
  }

  /** Takes the lock now, or gives undefined if somebody has it (or waits for it). */
  tryTake(key: string, holder: string): Held | undefined {
    if (this.#held.has(key) || this.#queues.has(key)) return undefined;
    return this.#take(key, holder);
  }

  /** Aborts the holder with `reason`, waits until it has released, and takes the lock. Preempters queue. */
  async preempt(key: string, holder: string, reason: unknown): Promise<Held> {
    const before = this.#queues.get(key) ?? Promise.resolve();
    const turn = Promise.withResolvers<void>();
    const mine = before.then(() => turn.promise);
    this.#queues.set(key, mine);
    await before;
    const entry = this.#held.get(key);
    entry?.abort.abort(reason);
    await entry?.released.promise;
    const held = this.#take(key, holder);
    if (this.#queues.get(key) === mine) this.#queues.delete(key);
    turn.resolve();
    return held;
  }

  #take(key: string, holder: string): Held {
    const entry: Entry = { holder, abort: new AbortController(), released: Promise.withResolvers<void>() };
    this.#held.set(key, entry);
    let done = false;
    return {
      signal: entry.abort.signal,
      [Symbol.asyncDispose]: async () => {
        if (done) return;
        done = true;
        this.#held.delete(key);
        entry.released.resolve();
      },
    };
  }
}
