/** A request with a body of any length, and its small answer. */
import http2, { type ClientHttp2Stream } from 'node:http2';
import type { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import { type Answer, bound, LostError, readBody, statusOf } from './link.ts';
import type { Requests } from './requests.ts';
import { sendAll } from './send.ts';

export interface UploadRequest {
  /** Completes "Cannot …". */
  what: string;
  path: string;
  body: Readable;
  /** What the body is, where it breaks off; default: the standard input. */
  noun?: string;
  /** How long the guest may take nothing of what waits for it; ten times as long it may take to answer. Default: for ever. */
  silence_ms?: number;
}

/** Rejects when the guest is silent for too long. Dispose it. */
const silence = (request: ClientHttp2Stream, what: string, ms: number): Disposable & { late: Promise<never> } => {
  const { promise: late, reject } = Promise.withResolvers<never>();
  late.catch(() => {}); // raced
  let since = performance.now();
  const touch = () => {
    since = performance.now();
  };
  request.on('drain', touch);
  const look = () => {
    const limit = request.writableEnded ? 10 * ms : ms;
    if (!request.writableEnded && !request.writableNeedDrain) touch();
    else if (performance.now() - since > limit)
      reject(new Fault('timeout', `Cannot ${what}: the guest was silent for ${limit} ms.`));
  };
  const timer = Number.isFinite(ms) ? setInterval(look, Math.min(1000, ms / 4)) : undefined;
  return { late, [Symbol.dispose]: () => clearInterval(timer) };
};

/** Sends the body once: an error says how far it came. `limit` ends it, `signal` is the caller's part of that. */
export const upload = async (
  requests: Requests,
  { what, path, body, noun, silence_ms = Number.POSITIVE_INFINITY }: UploadRequest,
  limit: AbortSignal,
  signal: AbortSignal,
): Promise<Answer> => {
  let sent = 0;
  try {
    return await requests.told(what, signal, async () => {
      const link = await requests.link(limit);
      const request = link.request({ ':method': 'POST', ':path': path }, false);
      using silent = silence(request, what, silence_ms);
      try {
        const answer = Promise.all([statusOf(request), readBody(request)]);
        answer.catch(() => {}); // raced below
        bound(request, limit);
        const onSent = (bytes: number) => {
          sent += bytes;
        };
        const sending = sendAll(request, body, onSent, noun);
        // A guest that has enough answers before all is sent; a source that fails is heard first.
        const [head, bytes] = await Promise.race([answer, sending.then(() => answer), silent.late]);
        return { status: head[':status'] ?? 0, body: bytes };
      } catch (error) {
        if (!(error instanceof LostError)) throw error;
        throw new LostError(`${error.message} after ${sent} bytes were sent`, error);
      } finally {
        if (!request.closed) request.close(http2.constants.NGHTTP2_CANCEL);
      }
    });
  } finally {
    body.destroy();
  }
};
