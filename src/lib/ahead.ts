/** Files that are read from their beginning to their end. */
import type { FileHandle } from 'node:fs/promises';

/** The most that a piece has of its own, and that it may have of the one before. */
export const PIECE = 1024 * 1024;
const NOTHING = Buffer.alloc(0);

/**
 * A file read front to back, one piece while the one before is worked on.
 *
 * INVARIANTS: there are two buffers for all pieces; at most one read is under way, into the one that nobody looks at. A piece is good
 * until the next is asked for.
 */
export class Ahead {
  readonly #handle: FileHandle;
  /** Each with room for the end of the piece before. */
  #buffer = Buffer.allocUnsafeSlow(2 * PIECE);
  #other = Buffer.allocUnsafeSlow(2 * PIECE);
  #at = 0;
  #reading: Promise<number>;

  constructor(handle: FileHandle) {
    this.#handle = handle;
    this.#reading = this.#read();
  }

  #read(): Promise<number> {
    const reading = this.#handle.read(this.#buffer, PIECE, PIECE, this.#at).then(({ bytesRead }) => bytesRead);
    reading.catch(() => {}); // told to who asks for it, if anybody does
    return reading;
  }

  /** The next piece, behind `left`, the end of the piece before; no longer than that at the end of the file. */
  async next(left: Buffer = NOTHING): Promise<Buffer> {
    const bytes = await this.#reading;
    const buffer = this.#buffer;
    left.copy(buffer, PIECE - left.length);
    this.#at += bytes;
    this.#buffer = this.#other;
    this.#other = buffer;
    this.#reading = this.#read();
    return buffer.subarray(PIECE - left.length, PIECE + bytes);
  }
}
