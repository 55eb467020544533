/**
 * Reads the data archive of a .deb as a stream of tar entries. Nothing is extracted but what the caller takes; no script of the
 * package runs.
 */
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import zlib from 'node:zlib';
import { extract } from 'tar-stream';
import { Fault } from '../api/fault.ts';
import { RunError, through } from '../lib/proc.ts';
import { type ArMember, debData } from './ar.ts';

export interface DebEntry {
  /** Without a leading `./`. */
  path: string;
  size: number;
  /** The content; refuses to hold more than `max` bytes. */
  bytes: (max: number) => Promise<Buffer>;
}

export interface DebOptions {
  signal: AbortSignal;
  /** Bytes of the compressed archive that were read, and all of them. */
  onBytes: (done: number, total: number) => void;
}

const MAX_UNPACKED = 4 * 1024 ** 3;
const MAX_ENTRIES = 100_000;

const bad = (why: string, cause?: unknown): Fault =>
  new Fault('unsupported', `Cannot read the package: ${why}.`, { cause });

/** The decompressing step for the name of the member. */
const unpacked = (name: string, source: Readable, signal: AbortSignal): Readable => {
  if (name === 'data.tar') return source;
  if (name === 'data.tar.xz')
    return Readable.from(
      through(['xz', '-dc', '--memlimit-decompress=1GiB'], source, { signal, timeout_ms: 600_000 }),
      {
        objectMode: false,
      },
    );
  const step = { 'data.tar.gz': zlib.createGunzip, 'data.tar.zst': zlib.createZstdDecompress }[name];
  if (step === undefined) throw bad(`${name} has an unknown compression`);
  const out = step();
  pipeline(source, out, { signal }).catch(() => {}); // the error is on `out` too
  return out;
};

/** The content of an entry, which must be as long as its header says. */
const held = async (path: string, size: number, content: AsyncIterable<Uint8Array>, max: number): Promise<Buffer> => {
  if (size > max) throw bad(`${path} is ${size} bytes long, more than ${max}`);
  const chunks: Uint8Array[] = [];
  let got = 0;
  for await (const chunk of content) {
    chunks.push(chunk);
    got += chunk.length;
    if (got > size) throw bad(`${path} is longer than it says`);
  }
  if (got !== size) throw bad(`${path} is cut short`);
  return Buffer.concat(chunks, size);
};

/** Where the data archive stands in the package. */
const locate = async (path: string): Promise<ArMember> => {
  const file = await open(path, 'r');
  try {
    return await debData(file);
  } finally {
    await file.close();
  }
};

const reader = async function* (path: string, options: DebOptions): AsyncGenerator<DebEntry> {
  const { name, offset, size } = await locate(path);
  if (size === 0) throw bad('its data archive is empty');
  let done = 0;
  const source = createReadStream(path, { start: offset, end: offset + size - 1, signal: options.signal });
  source.on('data', chunk => {
    done += chunk.length;
    options.onBytes(done, size);
  });
  source.pause(); // counting must not start the flow
  const tar = extract();
  const plain = unpacked(name, source, options.signal);
  const pumped = pipeline(plain, tar, { signal: options.signal });
  pumped.catch(() => {}); // the error is on `tar` too
  let entries = 0;
  let total = 0;
  try {
    for await (const entry of tar) {
      const { name: full, size: length, type } = entry.header;
      total += length;
      if (++entries > MAX_ENTRIES || total > MAX_UNPACKED) throw bad('it is too large');
      const path = full.replace(/^\.?\/+/, '');
      if (type === 'file') yield { path, size: length, bytes: max => held(path, length, Readable.from(entry), max) };
      entry.resume();
    }
    await pumped;
  } finally {
    await pumped.catch(() => {}); // the program has ended, whatever happened
  }
};

/** Calls `take` with each regular file of the package, in its order. */
export const readDeb = async (
  path: string,
  options: DebOptions,
  take: (entry: DebEntry) => Promise<void>,
): Promise<void> => {
  try {
    for await (const entry of reader(path, options)) await take(entry);
  } catch (error) {
    if (options.signal.aborted) throw options.signal.reason;
    if (error instanceof Fault) throw error;
    if (error instanceof RunError && error.errno === 'ENOENT')
      throw new Fault('host', 'Cannot unpack the package: xz is not installed.', { hint: 'apt-get install xz-utils' });
    if (error instanceof Error && 'code' in error && error.code === 'ENOSPC') throw error;
    throw bad(error instanceof Error ? error.message : String(error), error);
  }
};
