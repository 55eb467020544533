/**
 * The console's log on disk: raw bytes of the guest and lines of ours (console_marks.ts), in two files of bounded size.
 *
 * INVARIANTS: one pump writes, rotates and opens views, in the order of the calls. `pending` bytes wait in memory; whoever feeds the log stops at
 * MAX_PENDING. What cannot be written (full disk) is counted and said as soon as writing works again, never kept. What was written at
 * one time follows a mark of that time, which is at most MARK_EVERY_MS older.
 */
import { type FileHandle, open, rename } from 'node:fs/promises';
import { bootLine, bootLineIn, continuedLine, MARK, type MarkKind, markLine, timeLine } from './console_marks.ts';
import { BLOCK, bootIn, bytesAt, LogView, lastBoot, MARK_EVERY_MS } from './console_view.ts';

export const MAX_FILE = 4 * 1024 * 1024;
export const MAX_PENDING = 256 * 1024;

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
  #boot: number;
  /** Time of the last mark. */
  #marked_ms = 0;
  #pump: Promise<void> | undefined;
  #lost: { bytes: number; why: string } | undefined;
  /** The beginning of the newest boot, where it could not be written: it comes before all that can. */
  #owed: Buffer | undefined;

  private constructor(
    path: string,
    file: FileHandle,
    was: { size: number; mtimeMs: number; last: number; boot: number },
    max: number,
  ) {
    this.path = path;
    this.#file = file;
    this.#size = was.size;
    this.written_ms = was.size === 0 ? null : was.mtimeMs;
    this.#at_line_start = was.size === 0 || was.last === 10;
    this.#boot = was.boot;
    this.#max = max;
  }

  static async open(path: string, max = MAX_FILE): Promise<ConsoleLog> {
    const file = await open(path, 'a+', 0o600);
    try {
      const { size, mtimeMs } = await file.stat();
      const end = await bytesAt(file, Math.max(0, size - BLOCK), size);
      // it is near the end as a rule, and each look at a file of its own costs a start a turn
      const boot = bootIn(end) ?? (await lastBoot(path));
      return new ConsoleLog(path, file, { size, mtimeMs, last: end.at(-1) ?? 10, boot }, max);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** The number of the newest boot in it; 0: none. */
  get boot(): number {
    return this.#boot;
  }

  get pending(): number {
    return this.#pending;
  }

  /** What the guest wrote. Takes the bytes as its own. */
  append(bytes: Buffer): void {
    for (let at = bytes.indexOf(MARK); at !== -1; at = bytes.indexOf(MARK, at + 1)) bytes[at] = 0x20;
    const now = Date.now();
    const due = now - this.#marked_ms >= MARK_EVERY_MS || now < this.#marked_ms;
    // a mark is a line: it waits for the beginning of one
    const at = !due ? -1 : this.#at_line_start ? 0 : bytes.indexOf(10) + 1;
    if (bytes.length === 0 || at === bytes.length || at === -1 || (at === 0 && !this.#at_line_start)) {
      this.#push(bytes);
      return;
    }
    this.#push(bytes.subarray(0, at));
    this.#mark(now);
    this.#push(bytes.subarray(at));
  }

  /** A line of ours with the time, a gap with the time since when (`since_ms`) too. Gives what followers are to see. */
  note(kind: MarkKind, text: string, since_ms?: number): Buffer {
    const now = Date.now();
    return this.#ours(now, since_ms === undefined ? markLine(kind, text, now) : markLine(kind, text, since_ms, now));
  }

  /** A line that begins the next boot. */
  begin(text: string): Buffer {
    const now = Date.now();
    this.#boot++;
    return this.#ours(now, bootLine(this.#boot, now, text));
  }

  /** The log as it is at this moment: later appends wait until it is open. */
  view(): Promise<LogView> {
    const done = Promise.withResolvers<LogView>();
    const run = () => LogView.open(this.path).then(done.resolve, done.reject);
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

  #push(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#at_line_start = bytes[bytes.length - 1] === 10;
    this.#queue.push(bytes);
    this.#pending += bytes.length;
    this.#pump ??= Promise.resolve().then(() => this.#drain()); // so that what comes in one turn is one write
  }

  #mark(now: number): void {
    this.#marked_ms = now;
    this.#push(timeLine(now));
  }

  #ours(now: number, line: Buffer): Buffer {
    const seen = this.#at_line_start ? line : Buffer.concat([Buffer.from('\n'), line]);
    if (!this.#at_line_start) this.#push(Buffer.from('\n'));
    if (now - this.#marked_ms >= MARK_EVERY_MS || now < this.#marked_ms) this.#mark(now);
    this.#push(line);
    return seen;
  }

  async #drain(): Promise<void> {
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      const bytes = next;
      if (!Buffer.isBuffer(bytes)) await bytes.run();
      else {
        await this.#write(bytes).catch(error => {
          this.#owed = bootLineIn(bytes) ?? this.#owed;
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
      const head = this.#owed === undefined ? line : Buffer.concat([this.#owed, line]);
      await this.#file.appendFile(head);
      this.#size += head.length;
      this.#lost = undefined;
      this.#owed = undefined;
    }
    await this.#file.appendFile(bytes);
    this.#size += bytes.length;
  }

  async #rotate(): Promise<void> {
    await rename(this.path, `${this.path}.1`);
    const next = await open(this.path, 'a+', 0o600);
    await this.#file.close();
    this.#file = next;
    const head = continuedLine(this.#boot, Date.now());
    await next.appendFile(head);
    this.#size = head.length;
  }
}
