/**
 * LZ4 in its legacy frame, as kernels use it: magic 0x184c2102, then blocks of a length (little endian) and LZ4 data that is
 * at most 8 MiB long decompressed. Formats: lz4_Frame_format.md ("Legacy frame"), lz4_Block_format.md.
 */
import { setImmediate } from 'node:timers/promises';

export const LZ4_LEGACY = 0x184c2102;
const BLOCK = 8 * 1024 * 1024;
const MIN_MATCH = 4;

/** A length that goes on in further bytes while they are 255. Gives the length and the next position. */
const longer = (src: Buffer, start: number, first: number): [number, number] => {
  let length = first;
  let at = start;
  if (first !== 15) return [length, at];
  for (;;) {
    const byte = src[at++];
    if (byte === undefined) throw new RangeError('an LZ4 length is cut short');
    length += byte;
    if (length > BLOCK) throw new RangeError('an LZ4 length is too long');
    if (byte !== 255) return [length, at];
  }
};

/** Decompresses one block to `out` from `start`; gives the position after it. A match may not reach before `start`. */
const block = (src: Buffer, out: Buffer, start: number): number => {
  const limit = Math.min(out.length, start + BLOCK);
  let to = start;
  let at = 0;
  while (at < src.length) {
    const token = src[at++] ?? 0;
    const [literals, from] = longer(src, at, token >> 4);
    at = from + literals;
    if (at > src.length || to + literals > limit) throw new RangeError('LZ4 literals run over the end');
    src.copy(out, to, from, at);
    to += literals;
    if (at === src.length) return to;
    if (at + 2 > src.length) throw new RangeError('an LZ4 match is cut short');
    const distance = src.readUInt16LE(at);
    const [extra, next] = longer(src, at + 2, token & 15);
    const length = extra + MIN_MATCH;
    at = next;
    if (distance === 0 || distance > to - start) throw new RangeError('an LZ4 match reaches before the block');
    if (to + length > limit) throw new RangeError('an LZ4 match runs over the end');
    if (distance >= length) out.copyWithin(to, to - distance, to - distance + length);
    else for (let i = 0; i < length; i++) out[to + i] = out[to + i - distance] ?? 0;
    to += length;
  }
  throw new RangeError('an LZ4 block ends in a match');
};

/** Decompresses a whole legacy frame that is exactly `size` bytes long decompressed. Throws a RangeError on anything else. */
export const lz4Legacy = async (src: Buffer, size: number): Promise<Buffer> => {
  if (src.length < 4 || src.readUInt32LE(0) !== LZ4_LEGACY) throw new RangeError('it has no LZ4 magic');
  const out = Buffer.alloc(size);
  let at = 4;
  let to = 0;
  while (at < src.length) {
    if (at + 4 > src.length) throw new RangeError('an LZ4 block is cut short');
    const length = src.readUInt32LE(at);
    at += 4;
    if (length === LZ4_LEGACY) continue; // a further frame
    if (length > src.length - at) throw new RangeError('an LZ4 block is cut short');
    to = block(src.subarray(at, at + length), out, to);
    at += length;
    await setImmediate(); // a block takes some 20 ms; others want the thread too
  }
  if (to !== size) throw new RangeError(`it is ${to} bytes long decompressed, not ${size}`);
  return out;
};
