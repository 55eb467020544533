/** Reads a stream of chunks by exact lengths. */

export class Taker {
  readonly #from: AsyncIterator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);
  /** Bytes that were taken so far. */
  taken = 0;

  constructor(from: AsyncIterable<Buffer>) {
    this.#from = from[Symbol.asyncIterator]();
  }

  /** The next bytes that are there, at most `max`; undefined at the end. */
  async some(max: number): Promise<Buffer | undefined> {
    while (this.#chunk.length === 0) {
      const next = await this.#from.next();
      if (next.done) return undefined;
      this.#chunk = next.value;
    }
    const part = this.#chunk.subarray(0, max);
    this.#chunk = this.#chunk.subarray(part.length);
    this.taken += part.length;
    return part;
  }

  /** The next `size` bytes, or fewer at the end. `size` is one that may be held in memory. */
  async bytes(size: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let left = size; left > 0; ) {
      const part = await this.some(left);
      if (part === undefined) break;
      parts.push(part);
      left -= part.length;
    }
    return Buffer.concat(parts);
  }

  /** The next `size` bytes as a stream; it ends early if they are not there. */
  async *stream(size: number): AsyncGenerator<Buffer> {
    for (let left = size; left > 0; ) {
      const part = await this.some(left);
      if (part === undefined) return;
      left -= part.length;
      yield part;
    }
  }

  /** Lets go of the source. */
  async close(): Promise<void> {
    await this.#from.return?.();
  }
}
