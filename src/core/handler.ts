/** What every handler is given and gives back. A missing handler does not compile. */
import type { Readable } from 'node:stream';
import type { OpIn, OpName, OpOut, OpStream } from '../api/ops.ts';

export interface Ctx {
  /** Streams: aborted when the client goes away or the daemon stops. Plain operations go on; theirs is never aborted. */
  readonly signal: AbortSignal;
  /** Who asks, for histories and the audit log. */
  readonly actor: string;
  /** Upload operations only: the bytes of the request. */
  readonly body?: Readable;
}

/** One answer, or for `sse` operations the messages; a throw before the first message becomes the HTTP status. */
export type Answer<N extends OpName> = OpStream<N> extends 'sse' ? AsyncIterable<OpOut<N>> : OpOut<N>;

export type Handler<N extends OpName> = (ctx: Ctx, input: OpIn<N>) => Promise<Answer<N>>;

export type Handlers = { [N in OpName]: Handler<N> };

/** The handlers of one noun. */
export type HandlersOf<Noun extends string> = Pick<Handlers, Extract<OpName, `${Noun}.${string}`>>;
