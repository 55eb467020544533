/**
 * The output of one command, whatever becomes of the connection under it.
 *
 * INVARIANTS: at most one HTTP/2 stream at a time is the source. `offsets` count the bytes of whole frames that were taken
 * into the queue, gaps included; a new source begins exactly there. The queue takes no more while it costs over QUEUE
 * (then the HTTP/2 stream alone stands still), and never over QUEUE_MOST. `result` settles once.
 */
import http2, { type ClientHttp2Stream, type IncomingHttpHeaders } from 'node:http2';
import type { ExecExit } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import { pause } from '../lib/deadline.ts';
import type { Link } from './link.ts';
import { endUnknown } from './refusal.ts';
import { type Channel, type ExecPiece, exitOf, FrameParser } from './wire.ts';

export type Offsets = Record<Channel, number>;

export interface ExecStream extends AsyncIterable<ExecPiece> {
  readonly id: string;
  /** In the guest. */
  readonly pid: number;
  /** Bytes of each channel so far, dropped ones included: where an `attachExec` would go on. */
  readonly offsets: Readonly<Offsets>;
  /** Settles after the output was read to its end: output that nobody reads holds it back. */
  readonly result: Promise<ExecExit>;
  /** Lets go of the command, which goes on. The iteration ends, `result` rejects with `canceled`. */
  detach(): void;
}

/** An HTTP/2 stream from the moment of its request: trailers may come before anybody could ask for them. */
export class Source {
  readonly stream: ClientHttp2Stream;
  readonly link: Link;
  trailers: IncomingHttpHeaders | undefined;
  closed = false;
  ended = false;

  constructor(stream: ClientHttp2Stream, link: Link) {
    this.stream = stream;
    this.link = link;
    stream.once('trailers', trailers => {
      this.trailers = trailers;
    });
    stream.once('end', () => {
      this.ended = true;
    });
    stream.once('close', () => {
      this.closed = true;
    });
    stream.on('error', () => {}); // close follows
  }
}

export interface OutputOptions {
  id: string;
  pid: number;
  source: Source;
  /** A new source that begins at these offsets. Rejects with a fault when there is none to be had. */
  reattach: (offsets: Offsets, signal: AbortSignal) => Promise<Source>;
  /** Called once, when the output is over. */
  onOver: () => void;
}

const QUEUE = 128 * 1024;
const QUEUE_MOST = 1024 * 1024;
/** Its agent is not the one that ran it, or it ended too long ago. */
const FORGOTTEN = 'the guest no longer knows it';
/** What a piece costs besides its bytes. */
const PIECE_COST = 256;
/** Sources in a row that the guest may break off, on a connection that lives, without having sent anything. */
const BARREN_MOST = 10;

export class ExecOutput implements ExecStream {
  readonly id: string;
  readonly pid: number;
  readonly offsets: Offsets;
  readonly #options: OutputOptions;
  readonly #result = Promise.withResolvers<ExecExit>();
  readonly #over = new AbortController();
  readonly #queue: ExecPiece[] = [];
  #cost = 0;
  #source: Source;
  #parser = new FrameParser();
  #barren = 0;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(options: OutputOptions, offsets: Offsets = { stdout: 0, stderr: 0 }) {
    this.id = options.id;
    this.pid = options.pid;
    this.offsets = { ...offsets };
    this.#options = options;
    this.#source = options.source;
    this.#result.promise.catch(() => {}); // whoever wants it awaits it
  }

  /** Begins to read. Apart from the constructor, for it may be over at once. */
  start(): this {
    this.#use(this.#options.source);
    return this;
  }

  get result(): Promise<ExecExit> {
    return this.#result.promise;
  }

  /** Aborted when the output is over, in whatever way. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  detach(): void {
    if (this.#over.signal.aborted) return;
    this.#queue.length = 0;
    this.#settle(() => this.#result.reject(new Fault('canceled', `Command ${this.id} was let go; it goes on.`)));
  }

  /** Ends the output with an error: the iteration throws it after what is queued. */
  fail(error: unknown): void {
    if (this.#over.signal.aborted) return;
    this.#failure = error;
    this.#settle(() => this.#result.reject(error));
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ExecPiece> {
    for (;;) {
      const piece = this.#queue.shift();
      if (piece !== undefined) {
        this.#cost -= costOf(piece);
        if (this.#cost <= QUEUE) this.#source.stream.resume();
        yield piece;
        continue;
      }
      if (this.#over.signal.aborted) {
        if (this.#failure !== undefined) throw this.#failure;
        return;
      }
      await new Promise<void>(resolve => {
        this.#wake = resolve;
      });
    }
  }

  #use(source: Source): void {
    this.#source = source;
    this.#parser = new FrameParser();
    const onData = (chunk: Buffer) => this.#take(source, chunk);
    const onClose = () => {
      source.stream.off('data', onData);
      this.#onClose(source);
    };
    if (source.closed) {
      onClose();
      return;
    }
    source.stream.on('data', onData);
    source.stream.once('close', onClose);
    if (this.#cost <= QUEUE) source.stream.resume();
  }

  #take(source: Source, chunk: Buffer): void {
    if (source !== this.#source || this.#over.signal.aborted) return;
    try {
      for (const piece of this.#parser.push(chunk)) {
        this.#count(piece);
        this.#queue.push(piece);
        this.#cost += costOf(piece);
        this.#barren = 0;
      }
    } catch (error) {
      this.fail(error);
      return;
    }
    if (this.#cost > QUEUE) source.stream.pause();
    this.#wake?.();
  }

  #count(piece: ExecPiece): void {
    const total = this.offsets[piece.channel] + ('gap' in piece ? piece.gap : piece.data.length);
    if (!Number.isSafeInteger(total)) {
      throw new Fault('guest', `Cannot read the output of command ${this.id}: the guest sent an impossible length.`);
    }
    this.offsets[piece.channel] = total;
  }

  /** The end of a source: of the command if the trailers came and all before them was read, else of the connection. */
  #onClose(source: Source): void {
    if (source !== this.#source || this.#over.signal.aborted) return;
    const { stream } = source;
    // What had arrived before the connection went is still good.
    while (this.#cost < QUEUE_MOST && !this.#over.signal.aborted) {
      const chunk: unknown = stream.read();
      if (!Buffer.isBuffer(chunk)) break;
      this.#take(source, chunk);
    }
    if (this.#over.signal.aborted) return;
    const whole = stream.readableLength === 0;
    // A stream that goes down with its connection may look like one that ended well.
    const sound = source.link.alive && !stream.aborted && stream.rstCode === http2.constants.NGHTTP2_NO_ERROR;
    if (whole && source.trailers !== undefined) this.#finish(source.trailers);
    else if (whole && source.ended && sound) {
      this.fail(new Fault('guest', `Command ${this.id} ended without a result: the guest sent none.`));
    } else this.#recover(source).catch(error => this.fail(error));
  }

  #finish(trailers: IncomingHttpHeaders): void {
    try {
      if (!this.#parser.clean) {
        throw new Fault('guest', `Cannot read the output of command ${this.id}: its last frame was cut off.`);
      }
      const exit = exitOf(trailers);
      this.#settle(() => this.#result.resolve(exit));
    } catch (error) {
      this.fail(error);
    }
  }

  async #recover(lost: Source): Promise<void> {
    const { signal } = this.#over;
    if (lost.link.alive) this.#barren++;
    if (this.#barren > BARREN_MOST) {
      throw new Fault(
        'guest',
        `Cannot read the output of command ${this.id}: the guest breaks it off again and again.`,
      );
    }
    if (this.#barren > 0) await pause(Math.min(1000, 10 * 2 ** (this.#barren - 1)), signal);
    const source = await this.#options.reattach({ ...this.offsets }, signal).catch(error => {
      throw error instanceof Fault && error.code === 'not_found' ? endUnknown(this.id, FORGOTTEN, error) : error;
    });
    if (signal.aborted) source.stream.close(http2.constants.NGHTTP2_CANCEL);
    else this.#use(source);
  }

  #settle(how: () => void): void {
    how();
    this.#over.abort();
    const { stream } = this.#source;
    if (!stream.closed) stream.close(http2.constants.NGHTTP2_CANCEL);
    this.#wake?.();
    this.#options.onOver();
  }
}

const costOf = (piece: ExecPiece): number => PIECE_COST + ('gap' in piece ? 0 : piece.data.length);
