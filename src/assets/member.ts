/** One file out of an archive, and what else is wanted of it. Only exact names count, and only regular files. */
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { LandedFile, Stage } from '../api/pipeline.ts';
import { plain } from '../lib/text.ts';
import { type DebEntry, debEntries } from './deb.ts';
import { landFile } from './landing.ts';
import { type TarEntry, tarEntries } from './tar.ts';
import { translated } from './translated.ts';
import type { Bytes } from './unpack.ts';

type MemberStage = Extract<Stage, { stage: 'member' }>;

export interface MemberOptions {
  /** Where the files beside the stream are landed. */
  dir: string;
  beside: Record<string, LandedFile>;
  collect: ((file: DebEntry) => Promise<void>) | undefined;
  signal: AbortSignal;
}

const bad = (name: string, why: string): Fault =>
  new Fault('unsupported', `Cannot use the archive: ${plain(name).slice(0, 200)} ${why}.`);

const bare = (name: string): string => name.replace(/^\.?\/+/, '').replace(/\/+$/, '');

/** Throws unless the entry is a regular file whose bytes are its content. */
const regular = ({ path, type, sparse }: TarEntry): void => {
  if (sparse) throw bad(path, 'is a sparse file');
  if (type !== 'file') throw bad(path, `is no regular file (${type ?? 'of an unknown type'})`);
};

/** All bytes of an entry, or a fault. */
const exactly = async function* (path: string, size: number, content: Bytes): AsyncGenerator<Buffer> {
  let got = 0;
  for await (const chunk of content) {
    got += chunk.length;
    yield chunk;
  }
  if (got !== size) throw bad(path, 'is cut short');
};

/** Member name -> file name beside the stream; '' is the stream itself. Takes each name once. */
class Wanted {
  readonly #files: Map<string, string>;
  readonly #found = new Set<string>();

  constructor(stage: MemberStage) {
    const beside = Object.entries(stage.beside).map(([file, name]): [string, string] => [bare(name), file]);
    this.#files = new Map([...beside, [bare(stage.name), '']]);
    if (this.#files.size !== beside.length + 1)
      throw new Fault('invalid', 'Cannot take one member of an archive twice.');
  }

  /** The file for that name, or undefined if nobody wants it. */
  take(name: string): string | undefined {
    const file = this.#files.get(bare(name));
    if (file === undefined) return undefined;
    if (this.#found.has(bare(name))) throw bad(name, 'stands there twice');
    this.#found.add(bare(name));
    return file;
  }

  check(): void {
    for (const name of this.#files.keys()) if (!this.#found.has(name)) throw bad(name, 'is not in it');
  }
}

/** The entry as a file whose bytes may be had at once. */
const collected = ({ path, size, content }: TarEntry): DebEntry => ({
  path,
  size,
  bytes: async max => {
    if (size > max) throw bad(path, `is ${size} bytes long, more than ${max}`);
    const chunks: Buffer[] = [];
    for await (const chunk of exactly(path, size, content)) chunks.push(chunk);
    return Buffer.concat(chunks, size);
  },
});

const pick = async function* (stage: MemberStage, from: Bytes, options: MemberOptions): AsyncGenerator<Buffer> {
  const wanted = new Wanted(stage);
  for await (const entry of stage.archive === 'tar'
    ? tarEntries(from, options.signal)
    : debEntries(from, options.signal)) {
    const file = wanted.take(entry.path);
    if (file === undefined) {
      if (entry.type === 'file') await options.collect?.(collected(entry));
      continue;
    }
    regular(entry);
    const bytes = exactly(entry.path, entry.size, entry.content);
    if (file === '') yield* bytes;
    else options.beside[file] = await landFile(bytes, join(options.dir, file));
  }
  wanted.check();
};

/** What the reader of an archive means by an error; undefined where that is not the archive's fault: a full disk. */
const meaning = (error: unknown, signal: AbortSignal): Fault | undefined => {
  if (signal.aborted || (error instanceof Error && 'syscall' in error)) return undefined;
  const words = plain(error instanceof Error ? error.message : String(error)).replace(/\.$/, '');
  return new Fault('unsupported', `Cannot read the archive: ${words}.`, { cause: error });
};

/** The content of the member. Reads the archive to its end, for there might be a second one. */
export const member = (stage: MemberStage, from: Bytes, options: MemberOptions): Bytes =>
  translated(
    from,
    source => pick(stage, source, options),
    error => meaning(error, options.signal),
  );

/** Calls `take` with each regular file of the package `path`, in its order. */
export const readDeb = async (
  path: string,
  options: { signal: AbortSignal; onBytes: (done: number, total: number) => void },
  take: (entry: DebEntry) => Promise<void>,
): Promise<void> => {
  const { signal, onBytes } = options;
  const { size } = await stat(path);
  let done = 0;
  const file = async function* (): AsyncGenerator<Buffer> {
    for await (const chunk of createReadStream(path, { signal })) {
      done += chunk.length;
      onBytes(done, size);
      yield chunk;
    }
  };
  const read = async function* (source: Bytes): AsyncGenerator<void> {
    for await (const entry of debEntries(source, signal))
      yield entry.type === 'file' ? take(collected(entry)) : undefined;
  };
  for await (const _ of translated(file(), read, error => meaning(error, signal))) {
    // `take` has had it
  }
};
