/**
 * Passes a zstd stream on if it is one frame with nothing behind it: zstd itself takes several. Only the lengths of the blocks are
 * read, their content is left to zstd. Format: RFC 8878, section 3.1.1.
 */
import { Fault } from '../api/fault.ts';
import { Taker } from './take.ts';

const MAGIC = 0xfd2fb528;
const bad = (why: string): Fault => new Fault('unverified', `Cannot unpack zstd: ${why}.`);

/** Bytes of the frame header behind its descriptor. */
const headerBytes = (descriptor: number): number => {
  const single = (descriptor & 0x20) !== 0;
  const content = [single ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  const dictionary = [0, 1, 2, 4][descriptor & 3] ?? 0;
  return (single ? 0 : 1) + dictionary + content;
};

const frame = async function* (taker: Taker): AsyncGenerator<Buffer> {
  const exactly = async (size: number): Promise<Buffer> => {
    const bytes = await taker.bytes(size);
    if (bytes.length < size) throw bad('it is cut short');
    return bytes;
  };
  const head = await exactly(5);
  if (head.readUInt32LE(0) !== MAGIC) throw bad('it is not a zstd frame');
  const descriptor = head[4] ?? 0;
  yield head;
  yield await exactly(headerBytes(descriptor));
  for (let last = false; !last; ) {
    const block = await exactly(3);
    yield block;
    const word = block.readUIntLE(0, 3);
    last = (word & 1) === 1;
    yield* taker.stream((word & 6) === 2 ? 1 : word >> 3); // of a repeated byte there is one
  }
  if ((descriptor & 4) !== 0) yield await exactly(4); // checksum
};

export const oneFrame = async function* (from: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const taker = new Taker(from);
  try {
    yield* frame(taker);
    if ((await taker.some(1)) !== undefined) throw bad('there is something behind the frame');
  } finally {
    await taker.close();
  }
};
