/**
 * One control connection: an HTTP/2 client session over a byte stream of unknown manners.
 *
 * INVARIANTS: the byte stream is destroyed exactly once, when the link ends, for whatever reason. A link that ended never
 * comes back. A stream whose reader stalls holds back only itself: Node gives the connection's window back at once and a
 * stream's window only as its reader takes the bytes, so a stream keeps at most its window and one buffer on this side.
 */
import http2, { type ClientHttp2Session, type ClientHttp2Stream, type OutgoingHttpHeaders } from 'node:http2';
import type { Duplex } from 'node:stream';
import { Fault } from '../api/fault.ts';

export const STREAM_WINDOW = 256 * 1024;
export const CONNECTION_WINDOW = 32 * 1024 * 1024;
export const MAX_BODY = 64 * 1024;
/** Most that one write may queue inside the session; larger ones count in full against `maxSessionMemory`. */
export const MAX_WRITE = 64 * 1024;
/** MB. With Node's own 10, sixty stalled uploads end every new stream with ENHANCE_YOUR_CALM. */
const SESSION_MEMORY = 64;
const { NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = http2.constants;

/** The connection ended, or the stream on it was reset: nothing is known of what the request did. */
export class LostError extends Error {
  constructor(why: string, cause?: unknown) {
    super(why, cause === undefined ? undefined : { cause });
    this.name = 'LostError';
  }
}

export interface Link {
  /** Settles once, when the link has ended; never rejects. */
  readonly ended: Promise<LostError>;
  readonly alive: boolean;
  /** Throws a `LostError` on a link that has ended. */
  request(headers: OutgoingHttpHeaders, endStream: boolean): ClientHttp2Stream;
  close(why: string): void;
}

/** How often the shape of what came in is looked at, and over how many bytes. */
const SHAPE_EVERY_MS = 100;
const SHAPE_OVER = 4 * 1024 * 1024;
/** Bytes on the wire for a byte of content, at most: a byte of output in frames of its own costs 15 for 6. */
const SHAPE_RATIO = 4;
/** Bytes on the wire that a request may cost besides its content. */
const REQUEST_COST = 4096;
/** Bytes of ours for one that acknowledges them: Go's server sends two WINDOW_UPDATEs, 26 bytes, for each 4 KiB that its handler reads. */
const ACKNOWLEDGED = 64;

const bytesIn = (stream: Duplex): number | undefined =>
  'bytesRead' in stream && typeof stream.bytesRead === 'number' ? stream.bytesRead : undefined;

const bytesOut = (stream: Duplex): number =>
  'bytesWritten' in stream && typeof stream.bytesWritten === 'number' ? stream.bytesWritten : 0;

class ControlLink implements Link {
  readonly #session: ClientHttp2Session;
  readonly #stream: Duplex;
  readonly #done = Promise.withResolvers<LostError>();
  readonly #open = new Set<ClientHttp2Stream>();
  #alive = true;
  /** Bytes of content that readers took. */
  #taken = 0;
  /** Bytes on the wire that need no content to explain them: headers, what was sent to streams that we reset. */
  #excused = 0;
  #shape: NodeJS.Timeout | undefined;
  #shapeAt = { wire: 0, content: 0, excused: 0 };

  constructor(stream: Duplex) {
    this.#stream = stream;
    const session = http2.connect('http://guest', {
      createConnection: () => stream,
      maxSessionMemory: SESSION_MEMORY,
      peerMaxConcurrentStreams: 128,
      maxHeaderListPairs: 64,
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW, maxHeaderListSize: 16 * 1024 },
    });
    this.#session = session;
    session.on('connect', () => session.setLocalWindowSize(CONNECTION_WINDOW));
    session.on('error', error => this.#end('the connection to the guest failed', error));
    session.on('goaway', () => this.#end('the guest ended the connection'));
    session.on('close', () => this.#end('the connection to the guest was lost'));
    stream.on('error', error => this.#end('the connection to the guest failed', error));
    stream.on('end', () => this.#end('the connection to the guest was lost'));
    stream.on('close', () => this.#end('the connection to the guest was lost'));
    if (stream.destroyed) this.#end('the connection to the guest was lost');
  }

  get ended(): Promise<LostError> {
    return this.#done.promise;
  }

  get alive(): boolean {
    return this.#alive;
  }

  request(headers: OutgoingHttpHeaders, endStream: boolean): ClientHttp2Stream {
    if (!this.#alive) throw new LostError('the connection to the guest was lost');
    let stream: ClientHttp2Stream;
    try {
      stream = this.#session.request(headers, { endStream });
    } catch (cause) {
      throw new LostError('the connection to the guest takes no more requests', cause);
    }
    this.#open.add(stream);
    this.#excused += REQUEST_COST;
    stream.on('data', (chunk: Buffer) => {
      this.#taken += chunk.length;
    });
    stream.pause(); // until its reader says otherwise
    stream.on('close', () => {
      this.#open.delete(stream);
      if (stream.rstCode !== NGHTTP2_NO_ERROR) this.#excused += 2 * STREAM_WINDOW;
    });
    this.#shape ??= setInterval(() => this.#checkShape(), SHAPE_EVERY_MS).unref();
    return stream;
  }

  close(why: string): void {
    this.#end(why);
  }

  /**
   * Content in crumbs costs this process a hundred times its length while nobody reads it. Bytes on the wire that are
   * mostly headers of frames are an attack or a broken agent.
   */
  #checkShape(): void {
    const wire = bytesIn(this.#stream);
    const before = this.#shapeAt;
    if (wire === undefined || wire - before.wire < SHAPE_OVER) return;
    let content = this.#taken;
    for (const stream of this.#open) content += stream.readableLength;
    const excused = this.#excused + bytesOut(this.#stream) / ACKNOWLEDGED;
    this.#shapeAt = { wire, content, excused };
    const due = wire - before.wire - (excused - before.excused);
    if ((content - before.content) * SHAPE_RATIO < due) this.#end('the guest sent frames without content');
  }

  #end(why: string, cause?: unknown): void {
    if (!this.#alive) return;
    this.#alive = false;
    clearInterval(this.#shape);
    this.#done.resolve(new LostError(why, cause));
    this.#session.destroy(undefined, NGHTTP2_CANCEL);
    this.#stream.destroy();
  }
}

export const openLink = (stream: Duplex): Link => new ControlLink(stream);

export interface Answer {
  status: number;
  body: Buffer;
}

/** The bytes of a stream up to its end, at most `most`. Rejects with a `LostError` if it breaks off. */
export const readBody = (stream: ClientHttp2Stream | http2.ServerHttp2Stream, most = MAX_BODY): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    stream.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > most) {
        reject(new Fault('guest', `Cannot read what the guest sent: it is longer than ${most} bytes.`));
        stream.close(NGHTTP2_CANCEL);
      } else chunks.push(chunk);
    });
    stream.on('end', () => {
      if (!stream.aborted) resolve(Buffer.concat(chunks));
    });
    stream.on('error', error => reject(new LostError('the stream was reset', error)));
    stream.on('close', () => reject(new LostError('the stream was reset')));
    stream.resume();
  });

/** The status of the answer. Rejects with a `LostError` if none comes before the stream ends. */
export const statusOf = (stream: ClientHttp2Stream): Promise<http2.IncomingHttpHeaders & { ':status'?: number }> =>
  new Promise((resolve, reject) => {
    stream.on('response', resolve);
    stream.on('error', error => reject(new LostError('the stream was reset', error)));
    stream.on('close', () => reject(new LostError('the stream was reset')));
  });

/** Resets the stream when the signal is aborted. */
export const bound = (stream: ClientHttp2Stream, signal: AbortSignal): void => {
  const onAbort = () => stream.close(NGHTTP2_CANCEL);
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  stream.once('close', () => signal.removeEventListener('abort', onAbort));
};

/** One small request and its whole answer. Rejects with the signal's reason, a `LostError` or a `guest` fault. */
export const call = async (
  link: Link,
  request: { method: 'GET' | 'POST'; path: string; body?: unknown; most?: number },
  signal: AbortSignal,
): Promise<Answer> => {
  signal.throwIfAborted();
  const { method, path } = request;
  const body = request.body === undefined ? undefined : Buffer.from(JSON.stringify(request.body), 'utf8');
  const headers = { ':method': method, ':path': path, ...(body && { 'content-type': 'application/json' }) };
  const stream = link.request(headers, body === undefined);
  try {
    const head = statusOf(stream);
    const rest = readBody(stream, request.most);
    bound(stream, signal);
    if (body !== undefined) stream.end(body);
    const [headersIn, bytes] = await Promise.all([head, rest]);
    return { status: headersIn[':status'] ?? 0, body: bytes };
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    if (!stream.closed) stream.close(NGHTTP2_CANCEL);
  }
};

/** Throws a `LostError` if the guest does not answer as it should. */
export const ping = async (link: Link, signal: AbortSignal): Promise<void> => {
  const { status } = await call(link, { method: 'GET', path: '/v1/ping' }, signal);
  if (status !== 204) throw new LostError(`the guest answered a ping with status ${status}`);
};
