/** An archive as it is read: in blocks, from its beginning to its end. */
import type { Hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { BLOCK, bad } from './tar.ts';

const CHUNK = 1024 * 1024;

/** A file read front to back in blocks, hashed as it goes. */
export class Blocks {
  at = 0;
  readonly #handle: FileHandle;
  readonly #hash: Hash;
  readonly #tick: () => void;
  #buffer = Buffer.alloc(0);

  constructor(handle: FileHandle, hash: Hash, tick: () => void) {
    this.#handle = handle;
    this.#hash = hash;
    this.#tick = tick;
  }

  async #fill(): Promise<boolean> {
    this.#tick();
    const left = this.#buffer.length;
    const next = Buffer.allocUnsafe(left + CHUNK);
    this.#buffer.copy(next);
    const { bytesRead } = await this.#handle.read(next, left, CHUNK, this.at + left);
    this.#buffer = next.subarray(0, left + bytesRead);
    return bytesRead > 0;
  }

  /** The next `n` bytes without taking them; undefined if fewer are left. */
  async peek(n: number): Promise<Buffer | undefined> {
    while (this.#buffer.length < n) if (!(await this.#fill())) return undefined;
    return this.#buffer.subarray(0, n);
  }

  async take(n: number): Promise<Buffer> {
    const bytes = await this.peek(n);
    if (bytes === undefined) throw bad(this.at, 'is cut off: the archive ends in the middle of it');
    this.#hash.update(bytes);
    this.#buffer = this.#buffer.subarray(n);
    this.at += n;
    return bytes;
  }

  async skip(n: number): Promise<void> {
    for (let left = n; left > 0; ) {
      const step = Math.min(left, Math.max(this.#buffer.length, BLOCK), CHUNK);
      await this.take(step);
      left -= step;
    }
  }
}
