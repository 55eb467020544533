/** Decompression in the middle of a stream. One member and nothing behind it: what was signed or hashed is what its maker packed. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import zlib from 'node:zlib';
import { Fault } from '../api/fault.ts';
import { RunError, through } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { translated } from './translated.ts';
import { XzTail } from './xz.ts';
import { oneFrame } from './zstd.ts';

export type Bytes = AsyncIterable<Buffer>;

/** The waits for the network inside have deadlines of their own; this one is for a program that hangs, ms. */
const XZ_MS = 12 * 3_600_000;
const CHUNK = 256 * 1024;

const meaning = (error: unknown, how: string): Fault => {
  if (error instanceof RunError && error.errno === 'ENOENT')
    return new Fault('host', 'Cannot unpack: xz is not installed.', { hint: 'apt-get install xz-utils', cause: error });
  const words = error instanceof Error ? error.message : String(error);
  return new Fault('unverified', `Cannot unpack ${how}: ${plain(words).replace(/\.$/, '')}.`, { cause: error });
};

const xz = async function* (from: Bytes, signal: AbortSignal): AsyncGenerator<Buffer> {
  const tail = new XzTail();
  const input = Readable.from(tail.watch(from), { objectMode: false });
  yield* through(['xz', '-dc', '--format=xz', '--memlimit-decompress=1GiB'], input, { signal, timeout_ms: XZ_MS });
  tail.check();
};

const inflate = async function* (from: Bytes, step: zlib.Gunzip | zlib.ZstdDecompress): AsyncGenerator<Buffer> {
  const pumped = pipeline(from, step);
  pumped.catch(() => {}); // awaited below; the error is on `step` too
  try {
    yield* step;
    await pumped;
  } finally {
    step.destroy();
  }
};

/** The stream, decompressed. An error of the source comes out as it is; damage is `unverified`. */
export const unpack = (how: 'xz' | 'gzip' | 'zstd', from: Bytes, signal: AbortSignal): Bytes => {
  const read = (source: Bytes): Bytes => {
    if (how === 'xz') return xz(source, signal);
    const options = { rejectGarbageAfterEnd: true, chunkSize: CHUNK };
    if (how === 'gzip') return inflate(source, zlib.createGunzip(options));
    return inflate(oneFrame(source), zlib.createZstdDecompress(options));
  };
  return translated(from, read, error => (signal.aborted ? undefined : meaning(error, how)));
};
