/** Reads the data archive of a .deb as a stream of its entries. No script of the package runs. */
import { Fault } from '../api/fault.ts';
import { debData } from './ar.ts';
import { bounded } from './landing.ts';
import { type TarEntry, tarEntries } from './tar.ts';
import { type Bytes, unpack } from './unpack.ts';

/** A regular file of an archive, as it passes by. */
export interface DebEntry {
  /** Without a leading `./`. */
  path: string;
  size: number;
  /** The content; refuses to hold more than `max` bytes. */
  bytes: (max: number) => Promise<Buffer>;
}

const MAX_UNPACKED = 4 * 1024 ** 3;

const bad = (why: string): Fault => new Fault('unsupported', `Cannot read the package: ${why}.`);

const PACKED = { '': 'none', '.xz': 'xz', '.gz': 'gzip', '.zst': 'zstd' } as const;

/** The data archive, decompressed after its name. */
const plainTar = (name: string, content: Bytes, signal: AbortSignal): Bytes => {
  const end = Object.entries(PACKED).find(([end]) => name === `data.tar${end}`);
  if (end === undefined) throw bad(`${name} has an unknown compression`);
  return end[1] === 'none' ? content : unpack(end[1], content, signal);
};

/** The entries of the package, in their order. Reads it to its end. */
export const debEntries = async function* (from: Bytes, signal: AbortSignal): AsyncGenerator<TarEntry> {
  for await (const { name, content } of debData(from))
    yield* tarEntries(bounded(plainTar(name, content, signal), MAX_UNPACKED), signal);
};
