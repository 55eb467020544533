/**
 * The console's log on disk: raw bytes of the guest and lines of ours, in two files of bounded size.
 *
 * A line of ours begins with the byte 0x1e, which is replaced in what the guest writes: a guest cannot forge one.
 *
 * INVARIANTS: one pump writes, rotates and takes snapshots, in the order of the calls. `pending` bytes wait in memory; whoever feeds the log stops at
 * MAX_PENDING. What cannot be written (full disk) is counted and said as soon as writing works again, never kept.
 */
import { type FileHandle, open, rename } from 'node:fs/promises';
import { LineCutter } from './lines.ts';

export const MARK = 0x1e;
export const MAX_FILE = 4 * 1024 * 1024;
export const MAX_PENDING = 256 * 1024;
const BLOCK = 64 * 1024;

const errno = (error: unknown): string =>
  error instanceof Error && 'code' in error ? String(error.code) : String(error);

interface Task {
  run: () => Promise<void>;
}

export class ConsoleLog {
  readonly path: string;
  /** When the log was last written before this opening, ms; null: never. */
  readonly written_ms: number | null;
  readonly #max: number;
  #file: FileHandle;
  #size: number;
  #queue: (Buffer | Task)[] = [];
  #pending = 0;
  #at_line_start: boolean;
  #pump: Promise<void> | undefined;
  #lost: { bytes: number; why: string } | undefined;

  private constructor(
    path: string,
    file: FileHandle,
    was: { size: number; mtimeMs: number; last: number },
    max: number,
  ) {
    this.path = path;
    this.#file = file;
    this.#size = was.size;
    this.written_ms = was.size === 0 ? null : was.mtimeMs;
    this.#at_line_start = was.size === 0 || was.last === 10;
    this.#max = max;
  }

  static async open(path: string, max = MAX_FILE): Promise<ConsoleLog> {
    const file = await open(path, 'a+', 0o600);
    const { size, mtimeMs } = await file.stat();
    const { buffer } = await file.read(Buffer.alloc(1), 0, 1, Math.max(0, size - 1));
    return new ConsoleLog(path, file, { size, mtimeMs, last: buffer[0] ?? 10 }, max);
  }

  get pending(): number {
    return this.#pending;
  }

  get at_line_start(): boolean {
    return this.#at_line_start;
  }

  /** Takes the bytes as its own. */
  append(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#at_line_start = bytes[bytes.length - 1] === 10;
    this.#queue.push(bytes);
    this.#pending += bytes.length;
    this.#pump ??= this.#drain();
  }

  /** The last lines as the log is at this moment: later appends wait. `partial`: with what follows the last line end. */
  snapshot(lines: number, partial: boolean): Promise<Buffer[]> {
    const done = Promise.withResolvers<Buffer[]>();
    const run = () => lastLines(this.path, lines, partial).then(done.resolve, done.reject);
    this.#queue.push({ run });
    this.#pump ??= this.#drain();
    return done.promise;
  }

  /** Settles when everything appended so far is written or given up. */
  async idle(): Promise<void> {
    while (this.#pump !== undefined) await this.#pump;
  }

  async close(): Promise<void> {
    await this.idle();
    await this.#file.close();
  }

  async #drain(): Promise<void> {
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      const bytes = next;
      if (!Buffer.isBuffer(bytes)) await bytes.run();
      else {
        await this.#write(bytes).catch(error => {
          this.#lost = { bytes: (this.#lost?.bytes ?? 0) + bytes.length, why: errno(error) };
        });
        this.#pending -= bytes.length;
      }
    }
    this.#pump = undefined;
  }

  /** A task, or all bytes before the next task in one piece. */
  #next(): Buffer | Task | undefined {
    const end = this.#queue.findIndex(one => !Buffer.isBuffer(one));
    if (end === 0) return this.#queue.shift();
    const bytes = this.#queue.splice(0, end === -1 ? this.#queue.length : end).filter(one => Buffer.isBuffer(one));
    return bytes.length > 1 ? Buffer.concat(bytes) : bytes[0];
  }

  async #write(bytes: Buffer): Promise<void> {
    if (this.#size + bytes.length > this.#max && this.#size > 0) await this.#rotate();
    const lost = this.#lost;
    if (lost !== undefined) {
      const line = markLine('gap', `${lost.bytes} bytes could not be written (${lost.why})`, Date.now());
      await this.#file.appendFile(line);
      this.#size += line.length;
      this.#lost = undefined;
    }
    await this.#file.appendFile(bytes);
    this.#size += bytes.length;
  }

  async #rotate(): Promise<void> {
    await rename(this.path, `${this.path}.1`);
    const next = await open(this.path, 'a+', 0o600);
    await this.#file.close();
    this.#file = next;
    this.#size = 0;
  }
}

export type MarkKind = 'note' | 'gap';

/** A line of ours as it lies in the log. */
export const markLine = (kind: MarkKind, text: string, from_ms: number, to_ms?: number): Buffer => {
  const iso = (ms: number) => new Date(ms).toISOString();
  const when = to_ms === undefined ? iso(from_ms) : `${iso(from_ms)} to ${iso(to_ms)}`;
  const oneLine = text.replace(/[\u0000-\u001f\u007f]+/g, ' ');
  return Buffer.from(`${String.fromCharCode(MARK)}${kind === 'gap' ? 'G' : 'N'}--- ${when}: ${oneLine}\n`);
};

/** An offset before the last `lines` lines, at the beginning of a line, read backwards. */
const findStart = async (file: FileHandle, size: number, lines: number): Promise<number> => {
  let found = 0;
  const block = Buffer.alloc(Math.min(BLOCK, Math.max(size, 1)));
  for (let end = size; end > 0; ) {
    const start = Math.max(0, end - block.length);
    const { bytesRead } = await file.read(block, 0, end - start, start);
    for (let i = bytesRead - 1; i >= 0; i--) {
      if (block[i] === 10 && ++found > lines) return start + i + 1;
    }
    end = start;
  }
  return 0;
};

/** The last lines of one file, as bytes, at most `lines`. */
const lastOf = async (file: FileHandle, lines: number, partial: boolean): Promise<Buffer[]> => {
  const { size } = await file.stat();
  const start = await findStart(file, size, lines + 1);
  const kept: Buffer[] = [];
  const cutter = new LineCutter(line => {
    kept.push(Buffer.from(line));
    if (kept.length >= 2 * lines + 64) kept.splice(0, kept.length - lines);
  });
  for (let at = start; at < size; ) {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(BLOCK), 0, Math.min(BLOCK, size - at), at);
    if (bytesRead === 0) break;
    cutter.feed(buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
  if (partial) cutter.flush();
  return kept.slice(-lines);
};

/** The last lines of a console's log (both files), as bytes. Nobody may write meanwhile, or a rotation hides lines. */
export const lastLines = async (path: string, lines: number, partial: boolean): Promise<Buffer[]> => {
  let kept: Buffer[] = [];
  for (const name of [path, `${path}.1`]) {
    if (kept.length >= lines) break;
    const file = await open(name, 'r').catch(() => undefined);
    if (file === undefined) continue;
    try {
      const newest = name === path;
      kept = [...(await lastOf(file, lines - kept.length, partial || !newest)), ...kept];
    } finally {
      await file.close();
    }
  }
  return kept;
};
