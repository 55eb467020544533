/** The entries of a tar archive as a stream. Nothing is extracted but what the caller takes. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract } from 'tar-stream';

export interface TarEntry {
  /** Without a leading `./`; a sparse file's own name. */
  path: string;
  /** file, symlink, …; null if unknown. */
  type: string | null;
  size: number;
  /** The bytes are not the content but a map and pieces of it. */
  sparse: boolean;
  /** All of its bytes; what the reader leaves of them is passed over. */
  content: AsyncIterable<Buffer>;
}

const MAX_ENTRIES = 100_000;

/** The entries, in their order. Reads the archive to its end. */
export const tarEntries = async function* (from: AsyncIterable<Buffer>, signal: AbortSignal): AsyncGenerator<TarEntry> {
  const tar = extract();
  const pumped = pipeline(from, tar, { signal });
  pumped.catch(() => {}); // the error is on `tar` too
  let entries = 0;
  try {
    for await (const entry of tar) {
      if (++entries > MAX_ENTRIES) throw new RangeError(`it has more than ${MAX_ENTRIES} entries`);
      const { name, size = 0, type } = entry.header;
      const pax = Object.entries(entry.header.pax ?? {}).filter(([key]) => key.startsWith('GNU.sparse'));
      // tar-stream would wait for ever for the end of an entry whose size is no number
      if (!Number.isSafeInteger(size) || size < 0) throw new RangeError('an entry has a size that cannot be');
      const [, real] = pax.find(([key]) => key === 'GNU.sparse.name') ?? [];
      const path = (typeof real === 'string' ? real : name).replace(/^\.?\/+/, '');
      yield { path, type: type ?? null, size, sparse: pax.length > 0, content: Readable.from(entry) };
      entry.resume();
    }
    await pumped;
  } finally {
    await pumped.catch(() => {}); // what feeds it has ended, whatever happened
  }
};
