/**
 * One reader of a console.
 *
 * INVARIANTS: it holds at most MAX_ITEMS lines and MAX_BYTES bytes; what comes beyond is counted and told as a gap in its
 * place. A line is made printable only when it is taken. After the end `next` gives what is held, then done.
 */
export type ConsoleItem = { type: 'line'; line: string } | { type: 'gap'; detail: string };

const MAX_ITEMS = 4096;
const MAX_BYTES = 1024 * 1024;

interface Waiting {
  bytes: number;
  make: () => ConsoleItem;
}

export class Follower implements AsyncIterable<ConsoleItem> {
  readonly #before: Promise<ConsoleItem[]> | undefined;
  readonly #onEnd: () => void;
  readonly #signal: AbortSignal;
  readonly #abort = () => this.end();
  #queue: Waiting[] = [];
  #bytes = 0;
  #missed = 0;
  #ended = false;
  #wake = Promise.withResolvers<void>();

  constructor(signal: AbortSignal, before: Promise<ConsoleItem[]> | undefined, onEnd: () => void) {
    this.#signal = signal;
    this.#before = before;
    this.#onEnd = onEnd;
    before?.catch(() => {});
    signal.addEventListener('abort', this.#abort, { once: true });
  }

  push(bytes: number, make: () => ConsoleItem): void {
    if (this.#ended) return;
    if (this.#queue.length >= MAX_ITEMS || this.#bytes + bytes > MAX_BYTES) {
      this.#missed++;
      return;
    }
    this.#tellMissed();
    this.#queue.push({ bytes, make });
    this.#bytes += bytes;
    this.#wake.resolve();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#signal.removeEventListener('abort', this.#abort);
    this.#onEnd();
    this.#wake.resolve();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ConsoleItem> {
    try {
      if (this.#before !== undefined) yield* await this.#before;
      for (;;) {
        const batch = this.#takeAll();
        for (const { make } of batch) yield make();
        if (batch.length > 0) continue;
        if (this.#ended) return;
        await this.#wake.promise;
        this.#wake = Promise.withResolvers();
      }
    } finally {
      this.end();
    }
  }

  #takeAll(): Waiting[] {
    this.#tellMissed();
    const batch = this.#queue;
    this.#queue = [];
    this.#bytes = 0;
    return batch;
  }

  #tellMissed(): void {
    const missed = this.#missed;
    if (missed === 0) return;
    this.#missed = 0;
    const detail = `${missed} lines were left out: this reader was too slow`;
    this.#queue.push({ bytes: 0, make: () => ({ type: 'gap', detail }) });
  }
}
