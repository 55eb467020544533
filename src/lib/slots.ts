/**
 * A counting lock: so many slots, waiters served in order.
 *
 * INVARIANTS: the sum of all taken slots is at most `total`. A waiter that wants many is not overtaken by one that
 * wants few. An aborted waiter leaves the queue and takes nothing.
 */
interface Waiter {
  count: number;
  grant: (taken: Disposable) => void;
}

export class Slots {
  #free: number;
  readonly #total: number;
  readonly #queue: Waiter[] = [];

  constructor(total: number) {
    this.#total = total;
    this.#free = total;
  }

  get free(): number {
    return this.#free;
  }

  /** Waits for `count` slots. Dispose the result to give them back; a second dispose does nothing. */
  take(count: number, signal: AbortSignal): Promise<Disposable> {
    if (count > this.#total) return Promise.reject(new RangeError(`${count} slots of ${this.#total}`));
    if (signal.aborted) return Promise.reject(signal.reason);
    if (this.#queue.length === 0 && this.#free >= count) return Promise.resolve(this.#grant(count));
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        count,
        grant: taken => {
          signal.removeEventListener('abort', onAbort);
          resolve(taken);
        },
      };
      const onAbort = () => {
        this.#queue.splice(this.#queue.indexOf(waiter), 1);
        reject(signal.reason);
        this.#serve(); // the one behind may want less
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.#queue.push(waiter);
    });
  }

  #grant(count: number): Disposable {
    this.#free -= count;
    let given = false;
    return {
      [Symbol.dispose]: () => {
        if (given) return;
        given = true;
        this.#free += count;
        this.#serve();
      },
    };
  }

  #serve(): void {
    for (let next = this.#queue[0]; next !== undefined && next.count <= this.#free; next = this.#queue[0]) {
      this.#queue.shift();
      next.grant(this.#grant(next.count));
    }
  }
}
