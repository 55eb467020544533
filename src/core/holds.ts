/**
 * Ephemeral VMs: each lasts as long as somebody holds it.
 *
 * INVARIANTS: the record says that a VM is ephemeral; who holds it is known here alone, so with a new daemon everybody has `GRACE_MS` to
 * come back. Of each ephemeral VM there is a holder, or an alarm, or its deletion has begun. A daemon that stops deletes nothing.
 */
import type { Vm } from '../api/vm.ts';

/** How long a VM that was just made, or found by a new daemon, may be without a holder. */
const GRACE_MS = 15_000;

export class Holds implements Disposable {
  readonly #holders = new Map<string, number>();
  readonly #alarms = new Map<string, NodeJS.Timeout>();
  readonly #onLeft: (id: string) => void;
  #open = true;

  constructor(onLeft: (id: string) => void) {
    this.#onLeft = onLeft;
  }

  /** From now on somebody has to come. */
  expect({ id, ephemeral }: Pick<Vm, 'id' | 'ephemeral'>): void {
    if (!ephemeral || !this.#open || this.#holders.has(id)) return;
    clearTimeout(this.#alarms.get(id));
    this.#alarms.set(
      id,
      setTimeout(() => this.#left(id), GRACE_MS),
    );
  }

  take(id: string): Disposable {
    clearTimeout(this.#alarms.get(id));
    this.#alarms.delete(id);
    this.#holders.set(id, (this.#holders.get(id) ?? 0) + 1);
    return {
      [Symbol.dispose]: () => {
        const others = (this.#holders.get(id) ?? 1) - 1;
        if (others > 0) this.#holders.set(id, others);
        else this.#left(id);
      },
    };
  }

  #left(id: string): void {
    this.#holders.delete(id);
    this.#alarms.delete(id);
    if (this.#open) this.#onLeft(id);
  }

  [Symbol.dispose](): void {
    this.#open = false;
    for (const alarm of this.#alarms.values()) clearTimeout(alarm);
    this.#alarms.clear();
  }
}
