/**
 * One stream of server-sent events.
 *
 * INVARIANTS: the next message is asked for only when the socket has taken the one before, so a client that never reads
 * costs one message and the socket's buffer. When the client goes away, or `stop` is aborted, the iterator's signal is
 * aborted and `return()` is called exactly once. A heartbeat is written only while nothing else waits to be written.
 */
import type { ServerResponse } from 'node:http';
import { raced } from '../lib/deadline.ts';

/** Headers go out with the first message, or after this long without one; until then a fault has its own HTTP status. */
const HOLD_BACK_MS = 1000;
const HEARTBEAT_MS = 15_000;

const HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-store',
  'x-accel-buffering': 'no',
};

const frame = (message: unknown): string => {
  const seq = typeof message === 'object' && message !== null && 'seq' in message ? message.seq : undefined;
  return `${typeof seq === 'number' ? `id: ${seq}\n` : ''}data: ${JSON.stringify(message)}\n\n`;
};

export interface SseOptions {
  /** The response. It is untouched until `sendSse` returns true for "taken over". */
  raw: ServerResponse;
  /** Aborts when the client goes away or the daemon stops. */
  signal: AbortSignal;
  /** Checks a message; throws if it is not what the contract says. */
  check: (message: unknown) => void;
  /** Called once, right before the first byte is written. */
  onOpen: () => void;
  /** The problem document of an error that came after the first byte. */
  problemOf: (error: unknown) => unknown;
}

/**
 * Until the socket has taken it, where it does not at once. Not until 'drain': under load Node 26 does not tell it of some responses.
 * Of a response that is closed nothing is taken: its 'close' comes, and aborts the signal. Without that wait a source that never
 * waits itself would be read for ever, and the loop would not turn.
 */
const write = async (raw: ServerResponse, text: string, signal: AbortSignal): Promise<void> => {
  const taken = Promise.withResolvers<void>();
  const told = (error?: Error | null) => {
    if (error == null) taken.resolve();
  };
  if (!raw.write(text, told)) await raced(taken.promise, signal);
};

/** The first message, or `held` if there is none yet after the hold-back time. */
const firstOf = async <T>(next: Promise<T>, signal: AbortSignal): Promise<T | 'held'> => {
  const { promise, resolve } = Promise.withResolvers<'held'>();
  const timer = setTimeout(resolve, HOLD_BACK_MS, 'held');
  try {
    return await raced(Promise.race([next, promise]), signal);
  } finally {
    clearTimeout(timer);
  }
};

/** Sends the messages of `source` until it ends. Rejects only before the first byte: then the caller still owns the response. */
export const sendSse = async (source: AsyncIterable<unknown>, o: SseOptions): Promise<void> => {
  const iterator = source[Symbol.asyncIterator]();
  let open = false;
  let heart: NodeJS.Timeout | undefined;
  const start = () => {
    o.onOpen();
    open = true;
    o.raw.writeHead(200, HEADERS);
    o.raw.flushHeaders();
    heart = setInterval(() => {
      if (o.raw.writableLength === 0) o.raw.write(':\n\n'); // after a lost 'drain' too
    }, HEARTBEAT_MS);
  };
  try {
    let next = iterator.next();
    if ((await firstOf(next, o.signal)) === 'held') start();
    for (;;) {
      const result = await raced(next, o.signal);
      if (!open) start();
      if (result.done === true) break;
      o.check(result.value);
      await write(o.raw, frame(result.value), o.signal);
      next = iterator.next();
    }
    o.raw.end();
  } catch (error) {
    if (!open) throw error;
    if (o.raw.destroyed) return;
    o.raw.end(`event: fault\ndata: ${JSON.stringify(o.problemOf(o.signal.aborted ? o.signal.reason : error))}\n\n`);
  } finally {
    clearInterval(heart);
    void Promise.resolve(iterator.return?.()).catch(() => {}); // a pending next() ends it later; nobody waits
  }
};
