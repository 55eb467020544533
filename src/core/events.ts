/**
 * The event bus.
 *
 * INVARIANTS: `seq` grows by one an event. The newest KEPT events can be replayed. A subscriber that does not read holds at
 * most QUEUE events; what it missed it is told as a gap.
 */
import type { Event, EventMessage } from '../api/event.ts';

const KEPT = 1024;
const QUEUE = 1024;

interface Subscriber {
  queue: EventMessage[];
  missed: number;
  wake: (() => void) | undefined;
}

export class Events {
  readonly #kept: Event[] = [];
  readonly #subscribers = new Set<Subscriber>();
  #seq = 0;

  emit(type: string, subject: string, data: Record<string, unknown>): void {
    const event: Event = { type, seq: ++this.#seq, at_ms: Date.now(), subject, data };
    this.#kept.push(event);
    if (this.#kept.length > KEPT) this.#kept.shift();
    for (const subscriber of this.#subscribers) {
      if (subscriber.queue.length >= QUEUE) subscriber.missed++;
      else {
        tellMissed(subscriber);
        subscriber.queue.push(event);
      }
      subscriber.wake?.();
    }
  }

  /** Events from now on, after a replay of those with a seq above `since`. Subscribed when called, not when first read. */
  watch(options: { since?: number | undefined; signal: AbortSignal }): AsyncIterable<EventMessage> {
    const { since, signal } = options;
    const subscriber: Subscriber = { queue: [], missed: 0, wake: undefined };
    if (since !== undefined) {
      const oldest = this.#kept[0]?.seq ?? this.#seq + 1;
      if (since + 1 < oldest) subscriber.queue.push({ type: 'gap', missed: oldest - since - 1 });
      subscriber.queue.push(...this.#kept.filter(e => e.seq > since));
    }
    this.#subscribers.add(subscriber);
    // also of one that is never read
    signal.addEventListener('abort', () => this.#subscribers.delete(subscriber), { once: true });
    return this.#drain(subscriber, signal);
  }

  async *#drain(subscriber: Subscriber, signal: AbortSignal): AsyncGenerator<EventMessage> {
    const onAbort = () => subscriber.wake?.();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      while (!signal.aborted) {
        const next = subscriber.queue.shift();
        if (next !== undefined) {
          yield next;
          continue;
        }
        if (tellMissed(subscriber)) continue;
        await new Promise<void>(resolve => {
          subscriber.wake = resolve;
        });
        subscriber.wake = undefined;
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
      this.#subscribers.delete(subscriber);
    }
  }
}

/** The gap stands where the events are missing. */
const tellMissed = (subscriber: Subscriber): boolean => {
  const { missed } = subscriber;
  if (missed === 0) return false;
  subscriber.missed = 0;
  subscriber.queue.push({ type: 'gap', missed });
  return true;
};
