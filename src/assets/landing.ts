/** The end of a pipeline: a stream becomes a file of a private folder, hashed on its way and synced. */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import type { LandedFile } from '../api/pipeline.ts';
import { formatBytes } from '../lib/size.ts';

/** Bytes that are written at once. While they are, the next ones are read and hashed. */
const BATCH = 1024 * 1024;

/** Passes the stream on, up to a ceiling. */
export const bounded = async function* (from: AsyncIterable<Buffer>, max: number): AsyncGenerator<Buffer> {
  let size = 0;
  for await (const chunk of from) {
    size += chunk.length;
    if (size > max) throw new Fault('unsupported', `Cannot unpack: it is larger than ${formatBytes(max)}.`);
    yield chunk;
  }
};

/** Passes the stream on; throws at its end unless its SHA-256 is the expected one, and tells if it is. */
export const hashed = async function* (
  from: AsyncIterable<Buffer>,
  expected: string,
  what: string,
  passed: () => void = () => {},
): AsyncGenerator<Buffer> {
  const hash = createHash('sha256');
  for await (const chunk of from) {
    hash.update(chunk);
    yield chunk;
  }
  const found = hash.digest('hex');
  if (found !== expected)
    throw new Fault('unverified', `Cannot trust ${what}: its SHA-256 is ${found}, not ${expected}.`);
  passed();
};

/**
 * Writes the stream to the new file `path`, readable for all: a VMM's own user opens it. Every byte is on disk when it returns.
 * `known`: its SHA-256, if the stream proves it.
 */
export const landFile = async (from: AsyncIterable<Buffer>, path: string, known?: string): Promise<LandedFile> => {
  const hash = known === undefined ? createHash('sha256') : undefined;
  await using file = await open(path, 'wx', 0o644);
  let size = 0;
  let batch: Buffer[] = [];
  let held = 0;
  let writing: Promise<unknown> = Promise.resolve();
  const flush = async () => {
    const full = batch;
    batch = [];
    held = 0;
    await writing;
    writing = full.length === 0 ? Promise.resolve() : writeAll(full);
    writing.catch(() => {}); // awaited before the next write and at the end
  };
  /** writev may write less than it was given. */
  const writeAll = async (full: Buffer[]) => {
    const bytes = full.reduce((sum, chunk) => sum + chunk.length, 0);
    const { bytesWritten } = await file.writev(full);
    if (bytesWritten !== bytes) await file.writeFile(Buffer.concat(full).subarray(bytesWritten));
  };
  try {
    for await (const chunk of from) {
      hash?.update(chunk);
      size += chunk.length;
      batch.push(chunk);
      held += chunk.length;
      if (held >= BATCH) await flush();
    }
    await flush();
  } finally {
    await writing.catch(() => {}); // nothing is closed under a write
  }
  await writing;
  await file.sync();
  return { sha256: known ?? hash?.digest('hex') ?? '', size_bytes: size };
};
