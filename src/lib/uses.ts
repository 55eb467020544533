/**
 * What is in use by many, or taken by one: a lock for readers and a remover, without waiting.
 *
 * INVARIANTS: a key is used by many, or taken by one, or not in the map.
 */
const TAKEN = -1;

export class Uses {
  readonly #count = new Map<string, number>();

  /** Uses it beside others; undefined if somebody has taken it. */
  use(key: string): Disposable | undefined {
    const count = this.#count.get(key) ?? 0;
    if (count === TAKEN) return undefined;
    this.#count.set(key, count + 1);
    return this.#once(() => {
      const left = (this.#count.get(key) ?? 1) - 1;
      if (left === 0) this.#count.delete(key);
      else this.#count.set(key, left);
    });
  }

  /** Nobody uses it, nobody has taken it. */
  isFree(key: string): boolean {
    return !this.#count.has(key);
  }

  /** Takes it for oneself; undefined if somebody uses it or has taken it. */
  take(key: string): Disposable | undefined {
    if (this.#count.has(key)) return undefined;
    this.#count.set(key, TAKEN);
    return this.#once(() => void this.#count.delete(key));
  }

  #once(end: () => void): Disposable {
    let done = false;
    return {
      [Symbol.dispose]: () => {
        if (done) return;
        done = true;
        end();
      },
    };
  }
}
