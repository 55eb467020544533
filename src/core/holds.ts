/**
 * Ephemeral VMs: each lasts as long as somebody holds it.
 *
 * INVARIANTS: the record says that a VM is ephemeral; who holds it is known here alone, so with a new daemon everybody has `GRACE_MS` to
 * come back. Of each ephemeral VM there is a holder, or an alarm, or its deletion has begun; then nobody can hold it, until that has failed.
 * A daemon that stops deletes nothing.
 */
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';

/** How long a VM that was just made, or found by a new daemon, may be without a holder. */
const GRACE_MS = 15_000;

/** Lets go of a VM at its disposal. */
export interface Hold extends Disposable {
  /** Settled when the VM was deleted. */
  readonly gone: Promise<void>;
}

export class Holds implements Disposable {
  /** What each is told when its VM is gone. */
  readonly #holders = new Map<string, Set<() => void>>();
  readonly #alarms = new Map<string, NodeJS.Timeout>();
  /** VMs that are being deleted because nobody holds them. */
  readonly #leaving = new Set<string>();
  readonly #onLeft: (id: string) => Promise<void>;
  #open = true;

  /** `onLeft` deletes a VM; it does not reject. */
  constructor(onLeft: (id: string) => Promise<void>) {
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

  take(id: string): Hold {
    if (this.#leaving.has(id)) throw new Fault('not_found', `VM '${id}' is being deleted: nobody held it.`);
    this.#hush(id);
    const holders = this.#holders.get(id) ?? new Set();
    this.#holders.set(id, holders);
    const { promise: gone, resolve } = Promise.withResolvers<void>();
    holders.add(resolve);
    const letGo = () => {
      if (holders.delete(resolve) && holders.size === 0 && this.#holders.get(id) === holders) this.#left(id);
    };
    return { gone, [Symbol.dispose]: letGo };
  }

  /** The VM was deleted. */
  drop(id: string): void {
    this.#hush(id);
    const holders = this.#holders.get(id);
    this.#holders.delete(id);
    for (const gone of holders ?? []) gone();
  }

  #hush(id: string): void {
    clearTimeout(this.#alarms.get(id));
    this.#alarms.delete(id);
  }

  #left(id: string): void {
    this.#holders.delete(id);
    this.#alarms.delete(id);
    if (!this.#open) return;
    this.#leaving.add(id);
    void this.#onLeft(id).finally(() => this.#leaving.delete(id));
  }

  [Symbol.dispose](): void {
    this.#open = false;
    for (const alarm of this.#alarms.values()) clearTimeout(alarm);
    this.#alarms.clear();
  }
}
