/**
 * One download.
 *
 * INVARIANTS: the next bytes are asked for only when the socket has taken those before. A failure before the first byte is the
 * caller's to tell; one after it breaks the connection off, so that no client takes a part for the whole. The source is
 * disposed exactly once, whatever happens.
 */
import type { ServerResponse } from 'node:http';
import type { Download } from '../core/handler.ts';
import { raced } from '../lib/deadline.ts';

export interface DownloadOptions {
  raw: ServerResponse;
  /** Aborts when the client goes away or the daemon stops. */
  signal: AbortSignal;
  /** Throws if the head is not what the contract says. */
  check: (head: unknown) => void;
  /** Called once, right before the first byte is written. */
  onOpen: () => void;
  /** Told of an error that came after it. */
  onError: (error: unknown) => void;
}

/** JSON that a header can hold: whatever is not ASCII is escaped. */
const asciiJson = (value: unknown): string =>
  JSON.stringify(value).replace(/[\u007f-\uffff]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);

const headersOf = ({ head, length }: Download<unknown>): Record<string, string | number> => ({
  'content-type': 'application/octet-stream',
  'cache-control': 'no-store',
  'nexus-head': asciiJson(head),
  ...(length === null ? {} : { 'content-length': length }),
});

/** Until the socket has taken it, where it does not at once. A response that is closed takes nothing: `signal` is aborted then. */
const write = async (raw: ServerResponse, bytes: Uint8Array, signal: AbortSignal): Promise<void> => {
  const taken = Promise.withResolvers<void>();
  const told = (error?: Error | null) => {
    if (error == null) taken.resolve();
  };
  if (!raw.write(bytes, told)) await raced(taken.promise, signal);
};

/** Rejects only before the first byte: then the caller still owns the response. */
export const sendDownload = async (download: Download<unknown>, o: DownloadOptions): Promise<void> => {
  using source = download;
  o.check(source.head);
  const chunks = source.bytes[Symbol.asyncIterator]();
  let next = await raced(chunks.next(), o.signal);
  o.onOpen();
  o.raw.writeHead(200, headersOf(source));
  o.raw.flushHeaders();
  try {
    for (; next.done !== true; next = await raced(chunks.next(), o.signal)) await write(o.raw, next.value, o.signal);
    o.raw.end();
  } catch (error) {
    if (!o.signal.aborted) o.onError(error);
    o.raw.destroy();
  }
};
