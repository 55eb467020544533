/**
 * The console of a VM: a FIFO that the VMM holds open for reading and writing as its standard output, read by us alone.
 *
 * INVARIANTS: the reader is a `net.Socket` on a non-blocking descriptor (a file stream on a FIFO would block a thread of
 * the pool). The descriptor is open for writing too: so a VMM's end is not the end of the file, one console serves many runs, and
 * what a VMM writes just after another's end cannot vanish with a descriptor that is being replaced. Memory is bounded: reading stops while the
 * log has MAX_PENDING bytes to write, a follower holds at most MAX_ITEMS lines and MAX_BYTES, and learns how many it missed.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ConsoleLog, MAX_PENDING } from './console_log.ts';
import { type ConsoleItem, itemOf, type MarkKind, textOf } from './console_marks.ts';
import { type LogView, viewOf, type Wanted } from './console_view.ts';
import { ensureFifos } from './fifo.ts';
import { Follower } from './follower.ts';
import { LineCutter } from './lines.ts';
import { KEEPER_FIFO, METRICS_FIFO } from './run_dir.ts';

const { O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants;
/** The capacity of a pipe. */
const PIPE_BYTES = 64 * 1024;
/** A guest that never stops writing must not keep a reader waiting. */
const MAX_TURNS = 1000;
/** The most that a pipe can be made to hold holds so many of them. */
const MAX_PIPES = 16;

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
  /** The number of the newest boot in the log; 0: none. */
  readonly boot: number;
  /** The last lines, safe to print. Takes what still lies in the FIFO first. */
  tail(lines: number): Promise<string[]>;
  /** What was written so far, or a part of it. */
  past(wanted: Wanted): AsyncGenerator<ConsoleItem, void>;
  /** Every line from now on; with `past`, after those of the past, none missing and none twice. Iterate it: it holds files open. */
  follow(signal: AbortSignal, past?: Wanted): AsyncIterable<ConsoleItem>;
  /** Writes a line of ours, with the time; a gap with the time since when (`since_ms`) too. */
  note(text: string, options?: { kind?: MarkKind; since_ms?: number }): void;
  /** Writes the line that begins a boot. What still lies in the FIFO is of the boot before. */
  begin(text: string): void;
  close(): Promise<void>;
}

export const openConsole = async (options: ConsoleOptions): Promise<Console> => {
  // those too that a VMM beside it may want
  await ensureFifos([options.fifo, ...[METRICS_FIFO, KEEPER_FIFO].map(name => join(dirname(options.fifo), name))]);
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

/** What a log that no console is writing has of what is wanted; gives the number of its newest boot. */
export async function* readLog(log: string, wanted: Wanted): AsyncGenerator<ConsoleItem, number> {
  const view = await viewOf(log);
  try {
    yield* view.items(wanted);
    return await view.lastBoot();
  } finally {
    await view.close();
  }
}

/** The last lines of the console of a VM that does not run, safe to print. */
export const readConsole = async (log: string, lines: number): Promise<string[]> =>
  Array.fromAsync(readLog(log, { tail: lines }), textOf);

/** A view's items; the view is closed behind them. */
async function* itemsOf(view: Promise<LogView>, wanted: Wanted): AsyncGenerator<ConsoleItem, void> {
  const open = await view;
  try {
    yield* open.items(wanted);
  } finally {
    await open.close();
  }
}

const dropView = (view: Promise<LogView>): void => {
  view.then(v => v.close()).catch(() => {}); // it was not opened
};

class FifoConsole implements Console {
  readonly written_ms: number | null;
  readonly #path: string;
  readonly #log: ConsoleLog;
  readonly #followers = new Set<Follower>();
  readonly #cutter: LineCutter;
  readonly #socket: Socket;
  readonly #fd: number;
  #closed: Promise<void> | undefined;

  constructor(path: string, log: ConsoleLog) {
    this.#path = path;
    this.#log = log;
    this.written_ms = log.written_ms;
    this.#cutter = new LineCutter(line => {
      let copy: Buffer | undefined; // made once, and only if somebody has room for it: in a flood nobody has
      for (const follower of this.#followers) {
        if (!follower.takes(line.length)) continue;
        copy ??= Buffer.from(line);
        const kept = copy;
        follower.push(kept.length, () => itemOf(kept));
      }
    });
    [this.#fd, this.#socket] = this.#read();
  }

  get boot(): number {
    return this.#log.boot;
  }

  tail(lines: number): Promise<string[]> {
    return Array.fromAsync(this.past({ tail: lines }), textOf);
  }

  async *past(wanted: Wanted): AsyncGenerator<ConsoleItem, void> {
    if (this.#closed === undefined) await this.#take();
    yield* itemsOf(this.#closed === undefined ? this.#log.view() : viewOf(this.#log.path), this.#known(wanted));
  }

  follow(signal: AbortSignal, past: Wanted = { tail: 0 }): AsyncIterable<ConsoleItem> {
    const live = this.#closed === undefined && !signal.aborted;
    // View and subscription in one turn: no line is missing between them and none comes twice.
    const view = live && past.tail !== 0 ? this.#log.view() : undefined;
    const wanted = { ...this.#known(past), open_end: true, whole_lines: true };
    const follower = new Follower(signal, view && { items: itemsOf(view, wanted), close: () => dropView(view) }, () =>
      this.#followers.delete(follower),
    );
    if (live) this.#followers.add(follower);
    else follower.end();
    return follower;
  }

  note(text: string, options: { kind?: MarkKind; since_ms?: number } = {}): void {
    if (this.#closed === undefined) this.#cutter.feed(this.#log.note(options.kind ?? 'note', text, options.since_ms));
  }

  begin(text: string): void {
    if (this.#closed !== undefined) return;
    while (this.#socket.read() !== null); // what a full log holds back; its listener takes it
    for (let turn = 0; turn < MAX_PIPES && this.#readOnce() === PIPE_BYTES; turn++);
    this.#cutter.feed(this.#log.begin(text));
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

  /** With the number of the boot that began last, whether that could be written or not. */
  #known(wanted: Wanted): Wanted {
    return wanted.boot === undefined ? wanted : { ...wanted, newest_boot: this.#log.boot };
  }

  #fromGuest(bytes: Buffer): void {
    this.#log.append(bytes); // without the byte that begins our own lines
    this.#cutter.feed(bytes);
  }

  #read(): [fd: number, socket: Socket] {
    const fd = openSync(this.#path, O_RDWR | O_NONBLOCK | O_NOFOLLOW);
    if (!fstatSync(fd).isFIFO()) {
      closeSync(fd);
      throw new Fault('host', `Cannot use ${this.#path} as console: it is not a named pipe.`);
    }
    const socket = new Socket({ fd, readable: true, writable: false });
    socket.on('data', (chunk: Buffer) => {
      this.#fromGuest(chunk);
      if (this.#log.pending > MAX_PENDING) this.#rest(socket);
    });
    socket.on('error', error => this.note(`the console cannot be read any more: ${error.message}`, { kind: 'gap' }));
    return [fd, socket];
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
