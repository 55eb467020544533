/**
 * The log of a console as it is at one moment, and what of it somebody wants to see.
 *
 * INVARIANTS: a view holds both files open, so a rotation takes nothing from its reader, and reads no further than they were long
 * when it was opened. Memory is bounded: lines are read as a stream; only `tail` lines (and so at most the two files) are collected.
 */
import { statSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { type ConsoleItem, itemOf, MARK, MARK_HEAD, type Mark, parseMark } from './console_marks.ts';
import { LineCutter } from './lines.ts';

export const BLOCK = 64 * 1024;
/** Lines that are made printable before others get their turn. */
const TURN = 200;
/** How far back a boot may be asked for. */
export const MAX_BOOTS = 1000;
/** Lines follow their time mark within so many ms. */
export const MARK_EVERY_MS = 1000;

/** What of a log is wanted; together: what fits all. */
export interface Wanted {
  /** The last lines of it. */
  tail?: number | undefined;
  /** Since when, ms since the epoch; to about a second. */
  since_ms?: number | undefined;
  /** 0 is the newest boot, -1 the one before, … */
  boot?: number | undefined;
  /** The number of the newest boot, whose beginning it may have been impossible to write. */
  newest_boot?: number | undefined;
  /** Only later boots than the one of that number. */
  after_boot?: number | undefined;
  /** A boot is where to begin, not all there is to see. */
  open_end?: boolean | undefined;
  /** Without what follows the last line end: it will come once more, when it is whole. */
  whole_lines?: boolean | undefined;
}

interface Segment {
  file: FileHandle;
  size: number;
  /** Its first line, if it goes on where another file ended. */
  head: Mark | undefined;
  /** Where what was written begins, behind that line. */
  start: number;
}

interface Place {
  segment: number;
  at: number;
}

interface PlacedMark extends Mark {
  place: Place;
}

interface Range {
  from: Place;
  to: Place;
  /** What is missing at its beginning. */
  gap: string | undefined;
}

const before = (a: Place, b: Place): boolean => a.segment < b.segment || (a.segment === b.segment && a.at < b.at);
const later = (a: Place, b: Place): Place => (before(a, b) ? b : a);

const segmentOf = async (file: FileHandle): Promise<Segment> => {
  const { size } = await file.stat();
  const { buffer, bytesRead } = await file.read(Buffer.alloc(MARK_HEAD), 0, MARK_HEAD, 0);
  const bytes = buffer.subarray(0, bytesRead);
  const mark = parseMark(bytes);
  const head = mark?.kind === 'continued' ? mark : undefined;
  return { file, size, head, start: head === undefined ? 0 : bytes.indexOf(10) + 1 };
};

/** The number of the last boot whose mark begins in these bytes. */
export const bootIn = (bytes: Buffer): number | undefined => {
  for (let at = bytes.lastIndexOf(MARK); at !== -1; at = at === 0 ? -1 : bytes.lastIndexOf(MARK, at - 1)) {
    const mark = parseMark(bytes.subarray(at));
    if (mark?.kind === 'boot') return mark.boot;
  }
  return undefined;
};

const openIf = (path: string): Promise<FileHandle | undefined> =>
  open(path, 'r').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
    throw error;
  });

export class LogView {
  readonly #segments: readonly Segment[];
  #open = true;

  private constructor(segments: readonly Segment[]) {
    this.#segments = segments;
  }

  /** Nobody may rotate meanwhile. */
  static async open(path: string): Promise<LogView> {
    const segments: Segment[] = [];
    try {
      for (const name of [`${path}.1`, path]) {
        const file = await openIf(name);
        if (file !== undefined) segments.push(await segmentOf(file));
      }
      return new LogView(segments);
    } catch (error) {
      for (const { file } of segments) await file.close();
      throw error;
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    for (const { file } of this.#segments) await file.close();
  }

  /** The number of the newest boot; 0: none. Read backwards: it is near the end as a rule. */
  async lastBoot(): Promise<number> {
    for (const { file, size, head } of this.#segments.toReversed()) {
      for (let end = size; end > 0; end -= BLOCK) {
        const start = Math.max(0, end - BLOCK);
        const boot = bootIn(await bytesAt(file, start, Math.min(size, end + MARK_HEAD)));
        if (boot !== undefined) return boot;
      }
      if (head !== undefined) return head.boot;
    }
    return 0;
  }

  /** What is wanted of it, as it may be shown. `not_found`: there was no such boot. */
  async *items(wanted: Wanted): AsyncGenerator<ConsoleItem, void> {
    if (wanted.tail === 0) return;
    const range = await this.#locate(wanted);
    if (range.gap !== undefined) yield { type: 'gap', detail: range.gap };
    const items = this.#itemsOf(range, wanted);
    if (wanted.tail === undefined) return yield* items;
    const kept: ConsoleItem[] = [];
    for await (const item of items) {
      kept.push(item);
      if (kept.length >= 2 * wanted.tail + 64) kept.splice(0, kept.length - wanted.tail);
    }
    yield* kept.slice(-wanted.tail);
  }

  get #end(): Place {
    const segment = Math.max(0, this.#segments.length - 1);
    return { segment, at: this.#segments[segment]?.size ?? 0 };
  }

  async #locate(wanted: Wanted): Promise<Range> {
    const whole: Range = { from: { segment: 0, at: 0 }, to: this.#end, gap: undefined };
    const { since_ms, boot, after_boot, tail } = wanted;
    let range = whole;
    if (since_ms !== undefined || boot !== undefined || after_boot !== undefined) {
      const marks = await this.#findMarks(since_ms);
      if (boot !== undefined) range = this.#ofBoot(marks.boots, boot, wanted);
      if (after_boot !== undefined) range = this.#afterBoot(marks.boots, after_boot);
      if (since_ms !== undefined) range = this.#since(range, since_ms, marks.since);
    }
    if (tail === undefined) return range;
    const from = await this.#backwards(range, tail);
    return before(range.from, from) ? { ...range, from, gap: undefined } : range;
  }

  /** The newest boots, oldest first, and the first mark of the time that is wanted. */
  async #findMarks(
    since_ms = Number.POSITIVE_INFINITY,
  ): Promise<{ boots: PlacedMark[]; since: PlacedMark | undefined }> {
    let boots: PlacedMark[] = [];
    let since: PlacedMark | undefined;
    for (const [segment, { file, size }] of this.#segments.entries()) {
      for (let start = 0; start < size; start += BLOCK) {
        const bytes = await bytesAt(file, start, Math.min(size, start + BLOCK + MARK_HEAD));
        for (let at = bytes.indexOf(MARK); at !== -1 && at < BLOCK; at = bytes.indexOf(MARK, at + 1)) {
          const mark = parseMark(bytes.subarray(at));
          if (mark === undefined) continue;
          const placed = { ...mark, place: { segment, at: start + at } };
          if (since === undefined && mark.ms > since_ms - MARK_EVERY_MS) since = placed;
          if (mark.kind === 'boot') boots.push(placed);
          if (boots.length > 2 * MAX_BOOTS + 2) boots = boots.slice(-MAX_BOOTS - 1);
        }
      }
    }
    return { boots, since };
  }

  #ofBoot(boots: readonly PlacedMark[], boot: number, { open_end = false, newest_boot = 0 }: Wanted): Range {
    const head = this.#segments[0]?.head;
    const marked = boots.at(-1)?.boot ?? head?.boot ?? 0;
    const newest = Math.max(marked, newest_boot);
    const number = newest + boot;
    const from = boots.find(b => b.boot === number)?.place;
    const next = boots.find(b => b.boot > number)?.place;
    const to = open_end ? this.#end : (next ?? this.#end);
    if (from !== undefined) return { from, to, gap: undefined };
    if (number > marked) return { from: this.#end, to: this.#end, gap: 'what this boot wrote could not be written' };
    const start = { segment: 0, at: 0 };
    if (newest === 0 && boot === 0) return { from: start, to, gap: undefined };
    if (number < 1) {
      const has = newest === 0 ? 'none is known' : newest === 1 ? 'there was one' : `there were ${newest}`;
      throw new Fault('not_found', `There is no boot ${boot} of this VM: ${has}.`);
    }
    if (head?.boot === number) return { from: start, to, gap: 'the beginning of this boot was rotated away' };
    return { from: start, to: open_end ? to : start, gap: 'what this boot wrote was rotated away' };
  }

  #afterBoot(boots: readonly PlacedMark[], after: number): Range {
    const start = { segment: 0, at: 0 };
    const head = this.#segments[0]?.head;
    if (head !== undefined && head.boot > after)
      return { from: start, to: this.#end, gap: 'what came before was rotated away' };
    return { from: boots.find(b => b.boot > after)?.place ?? this.#end, to: this.#end, gap: undefined };
  }

  #since(range: Range, since_ms: number, mark: PlacedMark | undefined): Range {
    const head = this.#segments[0]?.head;
    const lost = head !== undefined && since_ms < head.ms && range.from.segment === 0 && range.from.at === 0;
    const gap = lost ? `what was written before ${new Date(head.ms).toISOString()} was rotated away` : undefined;
    return { ...range, from: later(range.from, mark?.place ?? this.#end), gap: range.gap ?? gap };
  }

  /** A place behind which there are at least so many lines, at the beginning of one. Lines of ours are not counted. */
  async #backwards({ from, to }: Range, lines: number): Promise<Place> {
    let found = 0;
    for (let segment = to.segment; segment >= from.segment; segment--) {
      const one = this.#segments[segment];
      if (one === undefined) break;
      const least = segment === from.segment ? Math.max(from.at, one.start) : one.start;
      for (let end = segment === to.segment ? to.at : one.size; end > least; end -= BLOCK) {
        const start = Math.max(least, end - BLOCK);
        const bytes = await bytesAt(one.file, start, end);
        for (let i = bytes.length - 1; i >= 0; i--) {
          if (bytes[i] === MARK) found--;
          else if (bytes[i] === 10 && ++found > lines + 1) return { segment, at: start + i + 1 };
        }
      }
    }
    return from;
  }

  async *#itemsOf({ from, to }: Range, { whole_lines = false }: Wanted): AsyncGenerator<ConsoleItem, void> {
    let ready: ConsoleItem[] = [];
    const cutter = new LineCutter(line => {
      const item = itemOf(line);
      if (item !== undefined) ready.push(item);
    });
    for (let segment = from.segment; segment <= to.segment; segment++) {
      const one = this.#segments[segment];
      if (one === undefined) break;
      const end = segment === to.segment ? to.at : one.size;
      for (let at = segment === from.segment ? Math.max(from.at, one.start) : one.start; at < end; at += BLOCK) {
        const bytes = await bytesAt(one.file, at, Math.min(end, at + BLOCK));
        for (let i = 0; i < bytes.length; i += 4096) {
          cutter.feed(bytes.subarray(i, i + 4096));
          yield* ready;
          if (ready.length > TURN) await new Promise(resolve => setImmediate(resolve));
          ready = [];
        }
      }
    }
    if (!whole_lines) cutter.flush();
    yield* ready;
  }
}

export const bytesAt = async (file: FileHandle, start: number, end: number): Promise<Buffer> => {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(end - start), 0, end - start, start);
  return buffer.subarray(0, bytesRead);
};

/** A view of a log that no console is writing. Should one begin to, and rotate in the middle of this, it is opened anew. */
export const viewOf = async (path: string): Promise<LogView> => {
  for (let round = 0; ; round++) {
    const first = inodeOf(path);
    const view = await LogView.open(path);
    if (first === inodeOf(path) || round === 5) return view;
    await view.close();
  }
};

/** The number of the newest boot in a log that no console is writing; 0: none. */
export const lastBoot = async (path: string): Promise<number> => {
  const view = await viewOf(path);
  return view.lastBoot().finally(() => view.close());
};

const inodeOf = (path: string): number | undefined => statSync(path, { throwIfNoEntry: false })?.ino;
