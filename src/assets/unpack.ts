/** Decompression in the middle of a stream. One member and nothing behind it: what was signed or hashed is what its maker packed. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import zlib from 'node:zlib';
import { Fault } from '../api/fault.ts';
import { RunError, through } from '../lib/proc.ts';
import { XzTail } from './xz.ts';

export type Bytes = AsyncIterable<Buffer>;

/** The waits for the network inside have deadlines of their own; this one is for a program that hangs, ms. */
const XZ_MS = 12 * 3_600_000;
const CHUNK = 256 * 1024;

export const unpackFault = (error: unknown, program: string): Fault => {
  if (error instanceof RunError && error.errno === 'ENOENT')
    return new Fault('host', `Cannot unpack: ${program} is not installed.`, {
      hint: `apt-get install ${program}-utils`,
    });
  const words = error instanceof Error ? error.message : String(error);
  return new Fault('unverified', `Cannot unpack: ${words.replace(/\.$/, '')}.`, { cause: error });
};

const own = (error: unknown): boolean =>
  error instanceof RunError ||
  (error instanceof Error && 'code' in error && /^(Z_|ZSTD_|ERR_TRAIL)/.test(String(error.code)));

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
export const unpack = async function* (
  how: 'xz' | 'gzip' | 'zstd',
  from: Bytes,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  try {
    if (how === 'xz') yield* xz(from, signal);
    else if (how === 'gzip') yield* inflate(from, zlib.createGunzip({ rejectGarbageAfterEnd: true, chunkSize: CHUNK }));
    else yield* inflate(from, zlib.createZstdDecompress({ rejectGarbageAfterEnd: true, chunkSize: CHUNK }));
  } catch (error) {
    if (error instanceof Fault || !own(error)) throw error;
    throw unpackFault(error, how);
  }
};
