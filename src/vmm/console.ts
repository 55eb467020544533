/**
 * The console of a VM: a FIFO that the VMM holds open for reading and writing as its standard output, read by us alone.
 *
 * INVARIANTS: the reader is a `net.Socket` on a non-blocking descriptor (a file stream on a FIFO would block a thread of
 * the pool). It is opened again when a VMM has ended, so one console serves many runs. Memory is bounded: reading stops while the
 * log has MAX_PENDING bytes to write, a follower holds at most MAX_ITEMS lines and MAX_BYTES, and learns how many it missed.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { Socket } from 'node:net';
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';
import { ConsoleLog, lastLines, MARK, MAX_PENDING, type MarkKind, markLine } from './console_log.ts';
import { ensureFifo } from './fifo.ts';
import { type ConsoleItem, Follower } from './follower.ts';
import { LineCutter } from './lines.ts';

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;
/** The capacity of a pipe. */
const PIPE_BYTES = 64 * 1024;
/** A guest that never stops writing must not keep a reader waiting. */
const MAX_TURNS = 1000;

export interface ConsoleOptions {
  fifo: string;
  log: string;
  /** Closes the console when aborted. */
  signal?: AbortSignal;
  /** Size at which the log is rotated, bytes; there are two files. */
  max_log_bytes?: number;
}

export interface Console {
  /** When the log was last written before this opening, ms; null: never. */
  readonly written_ms: number | null;
  /** The last lines, safe to print. Takes what still lies in the FIFO first. */
  tail(lines: number): Promise<string[]>;
  /** Every line from now on; with `past`, after that many earlier ones, none missing and none twice. */
  follow(signal: AbortSignal, past?: number): AsyncIterable<ConsoleItem>;
  /** Writes a line of ours, with the time; a gap with the time since when (`since_ms`) too. */
  note(text: string, options?: { kind?: MarkKind; since_ms?: number }): void;
  close(): Promise<void>;
}

export const openConsole = async (options: ConsoleOptions): Promise<Console> => {
  await ensureFifo(options.fifo);
  const log = await ConsoleLog.open(options.log, options.max_log_bytes);
  try {
    const console = new FifoConsole(options.fifo, log);
    options.signal?.addEventListener('abort', () => void console.close(), { once: true });
    if (options.signal?.aborted === true) await console.close();
    return console;
  } catch (error) {
    await log.close();
    throw error;
  }
};

/** The last lines of the console of a VM that does not run, safe to print. */
export const readConsole = async (log: string, lines: number): Promise<string[]> =>
  (await printable(lines > 0 ? await lastLines(log, lines, true) : [])).map(item => textOf(item));

const itemOf = (line: Buffer): ConsoleItem => {
  const mark = line[0] === MARK;
  const text = plain(line.subarray(mark ? 2 : 0).toString('utf8'));
  return mark && line[1] === 0x47 ? { type: 'gap', detail: text } : { type: 'line', line: text };
};

const textOf = (item: ConsoleItem): string => (item.type === 'line' ? item.line : item.detail);

/** Lines as they may be shown. Leaves the event loop its turn: there can be 100,000. */
const printable = async (lines: Buffer[]): Promise<ConsoleItem[]> => {
  const items: ConsoleItem[] = [];
  for (const line of lines) {
    items.push(itemOf(line));
    if (items.length % 200 === 0) await new Promise(resolve => setImmediate(resolve));
  }
  return items;
};

class FifoConsole implements Console {
  readonly written_ms: number | null;
  readonly #path: string;
  readonly #log: ConsoleLog;
  readonly #followers = new Set<Follower>();
  readonly #cutter: LineCutter;
  #socket: Socket;
  #fd: number;
  #closed: Promise<void> | undefined;

  constructor(path: string, log: ConsoleLog) {
    this.#path = path;
    this.#log = log;
    this.written_ms = log.written_ms;
    this.#cutter = new LineCutter(line => {
      if (this.#followers.size === 0) return;
      const copy = Buffer.from(line);
      for (const follower of this.#followers) follower.push(copy.length, () => itemOf(copy));
    });
    [this.#fd, this.#socket] = this.#read();
  }

  async tail(lines: number): Promise<string[]> {
    if (this.#closed !== undefined) return readConsole(this.#log.path, lines);
    await this.#take();
    return lines > 0 ? (await printable(await this.#log.snapshot(lines, true))).map(item => textOf(item)) : [];
  }

  follow(signal: AbortSignal, past = 0): AsyncIterable<ConsoleItem> {
    // Snapshot and subscription in one turn: no line is missing between them and none comes twice.
    const before = past > 0 && this.#closed === undefined ? this.#log.snapshot(past, false).then(printable) : undefined;
    const follower = new Follower(signal, before, () => this.#followers.delete(follower));
    if (this.#closed === undefined && !signal.aborted) this.#followers.add(follower);
    else follower.end();
    return follower;
  }

  note(text: string, options: { kind?: MarkKind; since_ms?: number } = {}): void {
    if (this.#closed !== undefined) return;
    const { kind = 'note', since_ms } = options;
    const line = since_ms === undefined ? markLine(kind, text, Date.now()) : markLine(kind, text, since_ms, Date.now());
    this.#put(this.#log.at_line_start ? line : Buffer.concat([Buffer.from('\n'), line]));
  }

  close(): Promise<void> {
    this.#closed ??= (async () => {
      await this.#take();
      this.#socket.destroy();
      for (const follower of [...this.#followers]) follower.end();
      await this.#log.close();
    })();
    return this.#closed;
  }

  #put(bytes: Buffer): void {
    this.#log.append(bytes);
    this.#cutter.feed(bytes);
  }

  /** What the guest wrote; the byte that begins our own lines is not for it. */
  #fromGuest(bytes: Buffer): void {
    for (let at = bytes.indexOf(MARK); at !== -1; at = bytes.indexOf(MARK, at + 1)) bytes[at] = 0x20;
    this.#put(bytes);
  }

  #read(): [fd: number, socket: Socket] {
    const fd = openSync(this.#path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
    if (!fstatSync(fd).isFIFO()) {
      closeSync(fd);
      throw new Fault('host', `Cannot use ${this.#path} as console: it is not a named pipe.`);
    }
    const socket = new Socket({ fd, readable: true, writable: false });
    socket.on('data', (chunk: Buffer) => {
      this.#fromGuest(chunk);
      if (this.#log.pending > MAX_PENDING) this.#rest(socket);
    });
    socket.on('error', () => {}); // 'close' follows
    // End of file: the VMM has ended. A FIFO without a writer that is opened anew is silent until there is one.
    socket.once('close', () => this.#again());
    return [fd, socket];
  }

  #again(): void {
    if (this.#closed !== undefined) return;
    try {
      [this.#fd, this.#socket] = this.#read();
    } catch (error) {
      this.note(`the console cannot be read any more: ${error instanceof Error ? error.message : error}`, {
        kind: 'gap',
      });
    }
  }

  #rest(socket: Socket): void {
    socket.pause();
    void this.#log.idle().then(() => socket.resume());
  }

  /** Takes what lies in the FIFO and before the log, so that a VMM's last words are not behind its end. */
  async #take(): Promise<void> {
    for (let turn = 0; turn < MAX_TURNS; turn++) {
      await this.#log.idle();
      const socket = this.#socket;
      if (socket.destroyed || socket.readableEnded) return;
      const resting = socket.readableLength > 0 || socket.isPaused();
      if (!resting && this.#readOnce() < PIPE_BYTES) return;
      await new Promise(resolve => setImmediate(resolve));
    }
  }

  /** The number of bytes that lay in the FIFO. */
  #readOnce(): number {
    const bytes = Buffer.alloc(PIPE_BYTES);
    try {
      const size = readSync(this.#fd, bytes);
      this.#fromGuest(bytes.subarray(0, size));
      return size;
    } catch {
      return 0; // EAGAIN: nothing there
    }
  }
}
