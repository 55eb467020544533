/** An archive as it is read: in pieces, from its beginning to its end. */
import type { Hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { Ahead, PIECE } from '../lib/ahead.ts';
import { BLOCK, bad } from './tar.ts';

/** A file read front to back in blocks, hashed as it goes. What is given is good until the next call. */
export class Blocks {
  readonly #ahead: Ahead;
  readonly #hash: Hash;
  readonly #tick: () => void;
  #bytes: Buffer = Buffer.alloc(0);
  /** What has been taken of these. */
  #taken = 0;
  /** Where they begin. */
  #base = 0;

  constructor(handle: FileHandle, hash: Hash, tick: () => void) {
    this.#ahead = new Ahead(handle);
    this.#hash = hash;
    this.#tick = tick;
  }

  /** The byte that is taken next. */
  get at(): number {
    return this.#base + this.#taken;
  }

  /** Everything that was taken is in the hash when this returns. */
  settle(): void {
    this.#hash.update(this.#bytes.subarray(0, this.#taken));
    this.#base += this.#taken;
    this.#bytes = this.#bytes.subarray(this.#taken);
    this.#taken = 0;
  }

  async #fill(): Promise<boolean> {
    this.#tick();
    this.settle();
    const left = this.#bytes.length;
    this.#bytes = await this.#ahead.next(this.#bytes);
    return this.#bytes.length > left;
  }

  /** The next `n` bytes without taking them; undefined if fewer are left. */
  async peek(n: number): Promise<Buffer | undefined> {
    if (n > PIECE) throw new Error(`${n} bytes of an archive at once`);
    while (this.#bytes.length - this.#taken < n) if (!(await this.#fill())) return undefined;
    return this.#bytes.subarray(this.#taken, this.#taken + n);
  }

  async take(n: number): Promise<Buffer> {
    const bytes = await this.peek(n);
    if (bytes === undefined) throw bad(this.at, 'is cut off: the archive ends in the middle of it');
    this.#taken += n;
    return bytes;
  }

  /** Takes all that is left. */
  async drain(): Promise<void> {
    do this.#taken = this.#bytes.length;
    while (await this.#fill());
  }

  async skip(n: number): Promise<void> {
    for (let left = n; left > 0; ) {
      const step = Math.min(left, Math.max(this.#bytes.length - this.#taken, BLOCK), PIECE);
      await this.take(step);
      left -= step;
    }
  }
}
