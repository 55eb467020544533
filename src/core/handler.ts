/** What every handler is given and gives back. A missing handler does not compile. */
import type { Readable } from 'node:stream';
import type { OpIn, OpName, OpOut, OpSay, OpStream } from '../api/ops.ts';

export interface Ctx {
  /** Streams: aborted when the client goes away or the daemon stops. Plain operations go on; theirs is never aborted. */
  readonly signal: AbortSignal;
  /** Who asks, for histories and the audit log. */
  readonly actor: string;
  /** Upload operations only: the bytes of the request. */
  readonly body?: Readable;
}

/** Bytes that are sent as they come. It is disposed in every case, read or not. */
export interface Download<Head> extends Disposable {
  readonly head: Head;
  /** How many bytes there will be; null: that is not known. */
  readonly length: number | null;
  readonly bytes: AsyncIterable<Uint8Array>;
}

/** Both directions at once. */
export interface Talk<O, I> {
  /** Bytes and messages for the client; their end is the end of the talk. */
  readonly output: AsyncIterable<Uint8Array | O>;
  /** Bytes or a message of the client, one at a time: the next is read when the promise has settled. */
  take(piece: Buffer | I): Promise<void>;
}

/** One answer, for `sse` operations the messages; a throw before the first message becomes the HTTP status. */
export type Answer<N extends OpName> =
  OpStream<N> extends 'sse'
    ? AsyncIterable<OpOut<N>>
    : OpStream<N> extends 'download'
      ? Download<OpOut<N>>
      : OpStream<N> extends 'ws'
        ? Talk<OpOut<N>, OpSay<N>>
        : OpOut<N>;

export type Handler<N extends OpName> = (ctx: Ctx, input: OpIn<N>) => Promise<Answer<N>>;

export type Handlers = { [N in OpName]: Handler<N> };

/** The handlers of one noun. */
export type HandlersOf<Noun extends string> = Pick<Handlers, Extract<OpName, `${Noun}.${string}`>>;
