/**
 * What a Firecracker counts, read from the FIFO to which it writes one JSON object a line, each the change since the one before:
 * at its start, every minute, when told to, and at its end (its sources, `logger/metrics.rs`).
 *
 * The VMM holds the FIFO open for reading and writing: 64 KiB are kept while no daemon reads, what comes beyond is lost. The sums
 * are kept in a file beside it, for the next daemon.
 *
 * INVARIANTS: a line longer than MAX_LINE is skipped, a number that is none counts as 0, sums stop at the largest whole number.
 * At most one pipe's content is taken every PAUSE_MS: a VMM that floods the pipe waits, we do not.
 */
import { readSync } from 'node:fs';
import { Socket } from 'node:net';
import { z } from 'zod';

const MAX_LINE = 128 * 1024;
const PIPE_BYTES = 64 * 1024;
const PAUSE_MS = 20;

const Count = z.int().min(0).catch(0);
const Line = z.object({
  block: z.object({ read_bytes: Count, write_bytes: Count }).optional(),
  i8042: z.object({ reset_count: Count }).optional(),
});

const Counters = z.object({
  disk_read_bytes: Count,
  disk_write_bytes: Count,
  /** Times the guest reset its machine. */
  resets: Count,
});
export type Counters = z.infer<typeof Counters>;
const NOTHING: Counters = { disk_read_bytes: 0, disk_write_bytes: 0, resets: 0 };

export interface MetricsOptions {
  /** The descriptor of the reading end, which becomes ours. */
  fd: number;
  /** What an earlier daemon kept. */
  load: () => Promise<string | undefined>;
  keep: (text: string) => Promise<void>;
}

const add = (a: number, b: number): number => Math.min(a + b, Number.MAX_SAFE_INTEGER);

export class Metrics {
  /** Settles when what an earlier daemon kept is counted in; never rejects. */
  readonly loaded: Promise<void>;
  readonly #fd: number;
  readonly #socket: Socket;
  #sums: Counters | undefined;
  #line: Buffer[] = [];
  #size = 0;
  #skipping = false;
  #next = Promise.withResolvers<void>();
  readonly #keep: MetricsOptions['keep'];
  #keeping: Promise<void> | undefined;

  constructor({ fd, load, keep }: MetricsOptions) {
    this.#fd = fd;
    this.#keep = keep;
    this.loaded = this.#load(load);
    this.#socket = new Socket({ fd, readable: true, writable: false });
    this.#socket.on('error', () => {});
    this.#socket.on('data', (chunk: Buffer) => {
      this.#feed(chunk);
      this.#socket.pause();
      setTimeout(() => this.#socket.resume(), PAUSE_MS);
    });
  }

  /** Undefined until the first line came. */
  get counters(): Counters | undefined {
    return this.#sums;
  }

  /** Settles with the next line. */
  get next(): Promise<void> {
    return this.#next.promise;
  }

  /** Settles when what came so far is kept for the next daemon; never rejects. */
  get kept(): Promise<void> {
    return this.#keeping ?? Promise.resolve();
  }

  /** Takes what lies in the FIFO now. */
  drain(): void {
    if (this.#socket.destroyed) return;
    const bytes = Buffer.alloc(PIPE_BYTES);
    try {
      this.#feed(bytes.subarray(0, readSync(this.#fd, bytes)));
    } catch {
      // EAGAIN: nothing there
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #feed(chunk: Buffer): void {
    let rest = chunk;
    for (let end = rest.indexOf(10); end !== -1; end = rest.indexOf(10)) {
      if (!this.#skipping) this.#count(Buffer.concat([...this.#line, rest.subarray(0, end)]));
      this.#skipping = false;
      this.#line = [];
      this.#size = 0;
      rest = rest.subarray(end + 1);
    }
    this.#size += rest.length;
    if (this.#size > MAX_LINE) {
      this.#skipping = true;
      this.#line = [];
    } else if (rest.length > 0) this.#line.push(Buffer.from(rest));
  }

  async #load(load: MetricsOptions['load']): Promise<void> {
    try {
      const text = await load();
      if (text !== undefined) this.#add(Counters.parse(JSON.parse(text)));
    } catch {
      // there is none, or a VMM wrote over it
    }
  }

  #add(more: Counters): void {
    const sums = this.#sums ?? NOTHING;
    this.#sums = {
      disk_read_bytes: add(sums.disk_read_bytes, more.disk_read_bytes),
      disk_write_bytes: add(sums.disk_write_bytes, more.disk_write_bytes),
      resets: add(sums.resets, more.resets),
    };
  }

  #count(line: Buffer): void {
    try {
      const { block, i8042 } = Line.parse(JSON.parse(line.toString('utf8')));
      this.#add({
        disk_read_bytes: block?.read_bytes ?? 0,
        disk_write_bytes: block?.write_bytes ?? 0,
        resets: i8042?.reset_count ?? 0,
      });
    } catch {
      return; // not a line of Firecracker's
    }
    const { resolve } = this.#next;
    this.#next = Promise.withResolvers();
    resolve();
    this.#keeping ??= this.#keepSums();
  }

  /** Lines that come meanwhile are in the next text, not each in one of its own. */
  async #keepSums(): Promise<void> {
    await this.loaded;
    for (let kept: Counters | undefined; kept !== this.#sums; ) {
      kept = this.#sums;
      await this.#keep(JSON.stringify(kept)).catch(() => {});
    }
    this.#keeping = undefined;
  }
}
