/**
 * Named locks with a holder that can be asked to let go.
 *
 * INVARIANTS: at most one holder a key. Waiters are served in order. Whoever holds the lock while a waiter wants it to let go has an
 * aborted signal, also one that was before that waiter in the queue. A key without holder is not in the map, and so has no waiters.
 */

export interface Held extends AsyncDisposable {
  /** Aborted when somebody preempts this holder; it must unwind and release. */
  readonly signal: AbortSignal;
}

export interface TakeOptions {
  /** Ends the wait; the promise rejects with its reason. */
  signal: AbortSignal;
  /** The reason with which a holder of that name is asked to let go; undefined: it is waited for. */
  preempt?: (holder: string) => unknown;
}

interface Waiter {
  readonly holder: string;
  readonly preempt: (holder: string) => unknown;
  readonly give: (held: Held) => void;
}

interface Entry {
  readonly holder: string;
  readonly abort: AbortController;
  readonly queue: Waiter[];
}

export class Locks {
  readonly #entries = new Map<string, Entry>();

  /** How many keys are held. */
  get size(): number {
    return this.#entries.size;
  }

  /** The name of the holder, or undefined if the key is free. */
  holder(key: string): string | undefined {
    return this.#entries.get(key)?.holder;
  }

  /** Takes the lock now, or gives undefined if somebody has it. */
  tryTake(key: string, holder: string): Held | undefined {
    return this.#entries.has(key) ? undefined : this.#grant(key, holder, []);
  }

  /** Waits for the lock, after those who wait already. */
  take(key: string, holder: string, options: TakeOptions): Promise<Held> {
    const { signal, preempt = () => undefined } = options;
    if (signal.aborted) return Promise.reject(signal.reason);
    const entry = this.#entries.get(key);
    if (entry === undefined) return Promise.resolve(this.#grant(key, holder, []));
    return new Promise((resolve, reject) => {
      const give = (held: Held) => {
        signal.removeEventListener('abort', onAbort);
        resolve(held);
      };
      const waiter: Waiter = { holder, preempt, give };
      const onAbort = () => {
        const queue = this.#entries.get(key)?.queue;
        queue?.splice(queue.indexOf(waiter), 1);
        reject(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      entry.queue.push(waiter);
      this.#ask(entry);
    });
  }

  /** Asks every holder to let go; does not wait for it. */
  abortAll(reason: unknown): void {
    for (const { abort } of this.#entries.values()) abort.abort(reason);
  }

  /** Aborts the holder if somebody in the queue wants that. */
  #ask({ holder, abort, queue }: Entry): void {
    for (const { preempt } of queue) {
      const reason = preempt(holder);
      if (reason !== undefined) abort.abort(reason); // the first reason stays
    }
  }

  #grant(key: string, holder: string, queue: Waiter[]): Held {
    const entry: Entry = { holder, abort: new AbortController(), queue };
    this.#entries.set(key, entry);
    this.#ask(entry);
    return {
      signal: entry.abort.signal,
      [Symbol.asyncDispose]: async () => {
        if (this.#entries.get(key) !== entry) return; // a second release
        const next = queue.shift();
        if (next === undefined) this.#entries.delete(key);
        else next.give(this.#grant(key, next.holder, queue));
      },
    };
  }
}
