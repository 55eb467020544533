/** Bytes that come from the daemon as they are read. */
import type { IncomingMessage } from 'node:http';
import { Fault } from '../api/fault.ts';
import { lost } from './transport.ts';

/**
 * `for await (const chunk of download)` reads it; it throws if the bytes are not whole at the end. Dispose what is not read to
 * its end.
 */
export interface Download<Head> extends AsyncIterable<Buffer>, Disposable {
  readonly head: Head;
  /** How many bytes there will be; null: the daemon does not know. */
  readonly length: number | null;
}

const headOf = (message: IncomingMessage): unknown => {
  const text = message.headers['nexus-head'];
  if (typeof text !== 'string') throw new Fault('internal', "The daemon's answer is no download.");
  return JSON.parse(text);
};

async function* chunksOf(message: IncomingMessage, socket: string, signal: AbortSignal | undefined) {
  const onAbort = () => message.destroy(new Error('aborted'));
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    signal?.throwIfAborted();
    for await (const chunk of message) yield Buffer.from(chunk);
  } catch (error) {
    signal?.throwIfAborted();
    throw lost(socket, error);
  } finally {
    signal?.removeEventListener('abort', onAbort);
    message.destroy();
  }
}

/** The daemon keeps the contract, so the head is what the operation says: the caller's type is taken for it. */
export const downloadOf = (
  message: IncomingMessage,
  socket: string,
  signal: AbortSignal | undefined,
): Download<unknown> => {
  const length = message.headers['content-length'];
  return {
    head: headOf(message),
    length: length === undefined ? null : Number(length),
    [Symbol.asyncIterator]: () => chunksOf(message, socket, signal),
    [Symbol.dispose]: () => message.destroy(),
  };
};
