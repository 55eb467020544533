/** What goes to a port of the guest and comes from it: a length (4 bytes, big endian), then so many bytes; the length 0 is the end. */
import { Fault } from '../api/fault.ts';
import { MAX_FRAME } from './wire.ts';

const HEADER = 4;

/** One frame; without bytes the end. */
export const portFrame = (payload: Buffer): Buffer => {
  const frame = Buffer.allocUnsafe(HEADER + payload.length);
  frame.writeUInt32BE(payload.length, 0);
  payload.copy(frame, HEADER);
  return frame;
};

const broken = (what: string) => new Fault('guest', `Cannot read from the port: the guest sent ${what}.`);

/**
 * Takes the bytes in any portions and gives what is in them; nothing is held but an unfinished head. Throws a `guest` fault on what
 * cannot be.
 */
export class PortFrames {
  readonly #head = Buffer.alloc(HEADER);
  #headLength = 0;
  /** Bytes of the present frame that are still to come. */
  #left = 0;
  #ended = false;

  /** True after the end; only here may the stream end. */
  get ended(): boolean {
    return this.#ended;
  }

  push(chunk: Buffer): (Buffer | 'end')[] {
    const pieces: (Buffer | 'end')[] = [];
    for (let at = 0; at < chunk.length; ) {
      if (this.#ended) throw broken('bytes after its end');
      if (this.#left > 0) {
        const piece = chunk.subarray(at, at + this.#left);
        pieces.push(piece);
        at += piece.length;
        this.#left -= piece.length;
        continue;
      }
      const took = chunk.copy(this.#head, this.#headLength, at);
      at += took;
      this.#headLength += took;
      if (this.#headLength < HEADER) break;
      this.#headLength = 0;
      this.#left = this.#head.readUInt32BE(0);
      if (this.#left > MAX_FRAME) throw broken(`a frame of ${this.#left} bytes, more than ${MAX_FRAME}`);
      if (this.#left > 0) continue;
      this.#ended = true;
      pieces.push('end');
    }
    return pieces;
  }
}
