/**
 * One reader of a console.
 *
 * INVARIANTS: it holds at most MAX_ITEMS lines and MAX_BYTES bytes; what comes beyond is counted and told as a gap in its
 * place. A line is made printable only when it is taken. After the end `next` gives what is held, then done.
 */
import type { ConsoleItem } from './console_marks.ts';

const MAX_ITEMS = 4096;
const MAX_BYTES = 1024 * 1024;

interface Waiting {
  bytes: number;
  make: () => ConsoleItem | undefined;
}

/** What came before the first line that is followed. */
export interface Past {
  items: AsyncIterable<ConsoleItem>;
  /** Called if it is never read. */
  close(): void;
}

export class Follower implements AsyncIterable<ConsoleItem> {
  #past: Past | undefined;
  readonly #onEnd: () => void;
  readonly #signal: AbortSignal;
  readonly #abort = () => this.end();
  #queue: Waiting[] = [];
  #bytes = 0;
  #missed = 0;
  #ended = false;
  #wake = Promise.withResolvers<void>();

  constructor(signal: AbortSignal, past: Past | undefined, onEnd: () => void) {
    this.#signal = signal;
    this.#past = past;
    this.#onEnd = onEnd;
    signal.addEventListener('abort', this.#abort, { once: true });
  }

  /** Whether it has room for a line of that many bytes; one that it has no room for is counted as missed. */
  takes(bytes: number): boolean {
    const room = this.#queue.length < MAX_ITEMS && this.#bytes + bytes <= MAX_BYTES;
    if (!room && !this.#ended) this.#missed++;
    return room && !this.#ended;
  }

  /** What it takes. `make` gives nothing for what is not to be seen. */
  push(bytes: number, make: () => ConsoleItem | undefined): void {
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
    this.#past?.close();
    this.#wake.resolve();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ConsoleItem> {
    const past = this.#past;
    this.#past = undefined;
    try {
      if (past !== undefined) yield* past.items;
      for (;;) {
        const batch = this.#takeAll();
        for (const { make } of batch) {
          const item = make();
          if (item !== undefined) yield item;
        }
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
