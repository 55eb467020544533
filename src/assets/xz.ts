/**
 * Is an .xz file one stream with nothing behind it? xz itself takes several, and padding. Its last stream's footer and index tell
 * how long that stream is: as long as the file, or there is something before it. xz checks the index against the blocks.
 * Format: the .xz file format, version 1.2.1, sections 2.1.2 and 4.
 */
import { Fault } from '../api/fault.ts';

const HEADER = 12;
const FOOTER = 12;
/** Of an index that is looked at: some thousands of blocks, which are 24 MiB each as xz makes them. */
const MAX_INDEX = 64 * 1024;

const bad = (why: string): Fault => new Fault('unverified', `Cannot unpack: ${why}.`);

/** A multibyte integer of the format, section 1.2, of at most 63 bits; here what fits a double. */
const integer = (bytes: Buffer, at: number): [value: number, next: number] => {
  let value = 0;
  for (let i = 0; i < 9; i++) {
    const byte = bytes[at + i];
    if (byte === undefined) break;
    value += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return [value, at + i + 1];
  }
  throw bad('the index of the xz stream is damaged');
};

/** Sum of the blocks of an index, each rounded up to 4 bytes. */
const blockBytes = (index: Buffer): number => {
  if (index[0] !== 0) throw bad('the index of the xz stream is damaged');
  let [records, at] = integer(index, 1);
  let sum = 0;
  for (; records > 0; records--) {
    const [unpadded, next] = integer(index, at);
    at = integer(index, next)[1];
    sum += Math.ceil(unpadded / 4) * 4;
  }
  return sum;
};

/** Length of the stream that ends at the end of `tail`, bytes. `tail` holds at least its index and footer. */
export const lastStreamBytes = (tail: Buffer): number => {
  if (tail.length < FOOTER || tail.toString('latin1', tail.length - 2) !== 'YZ')
    throw bad('there is something behind the xz stream, or its end is missing');
  const index = (tail.readUInt32LE(tail.length - 8) + 1) * 4; // backward size
  if (index > MAX_INDEX) throw bad('the index of the xz stream is too long');
  if (index + FOOTER > tail.length) throw bad('the xz stream is cut short');
  return HEADER + blockBytes(tail.subarray(tail.length - FOOTER - index, -FOOTER)) + index + FOOTER;
};

/** Keeps the end of what passes. */
export class XzTail {
  #kept: Buffer[] = [];
  #held = 0;
  #total = 0;

  async *watch(from: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of from) {
      this.#total += chunk.length;
      this.#kept.push(chunk);
      this.#held += chunk.length;
      for (let first = this.#kept[0]; first !== undefined && this.#held - first.length >= MAX_INDEX; ) {
        this.#held -= first.length;
        this.#kept.shift();
        first = this.#kept[0];
      }
      yield chunk;
    }
  }

  /** Throws unless all that passed was one stream. */
  check(): void {
    if (lastStreamBytes(Buffer.concat(this.#kept)) !== this.#total)
      throw bad('it is more than one xz stream, and its maker writes one');
  }
}
