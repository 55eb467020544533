/**
 * The egress connection: here the guest is the HTTP/2 client and we are the server. It rings the bell and tells when it
 * goes down.
 *
 * INVARIANTS: no request may keep more than one bounded body and one timer. The byte stream is destroyed exactly once. A
 * guest that misbehaves loses its connection and fills neither memory nor the log.
 */
import http2, { type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { Log } from '../lib/log.ts';
import { atMost } from '../lib/rate.ts';
import { plain } from '../lib/text.ts';
import { Ending, type Facts, parseBody, parseFacts } from './facts.ts';
import { CONNECTION_WINDOW, readBody, STREAM_WINDOW } from './link.ts';

export interface EgressOptions {
  onBell: (facts: Facts) => void;
  /** The guest rang, but cannot be talked to. */
  onMisfit: (fault: Fault) => void;
  onEnding: (ending: Ending) => void;
  log: Log;
}

const MAX_REQUESTS = 8;
const REQUEST_MS = 10_000;
const { NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = http2.constants;

const respond = (stream: ServerHttp2Stream, status: number, error?: { code: string; detail: string }): void => {
  if (stream.destroyed || stream.closed || stream.headersSent) return;
  if (error === undefined) stream.respond({ ':status': status }, { endStream: true });
  else {
    stream.respond({ ':status': status, 'content-type': 'application/json' });
    stream.end(JSON.stringify(error));
  }
  // The rest of a body that nobody wants is refused, or it would hold its window for good.
  if (!stream.readableEnded) stream.close(NGHTTP2_NO_ERROR);
};

const handle = async (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, options: EgressOptions) => {
  const route = `${headers[':method']} ${headers[':path']}`;
  if (route === 'POST /v1/bell') {
    const body = await readBody(stream);
    try {
      const facts = parseFacts(body);
      respond(stream, 204);
      options.onBell(facts);
    } catch (error) {
      if (error instanceof Fault) options.onMisfit(error);
      throw error;
    }
  } else if (route === 'POST /v1/ending') {
    const ending = parseBody(Ending, await readBody(stream), 'the announcement of the end');
    respond(stream, 204);
    options.onEnding(ending);
  } else {
    respond(stream, 404, { code: 'not_found', detail: 'there is no such request' });
  }
};

const serveSession = (session: ServerHttp2Session, options: EgressOptions): void => {
  const may = atMost(5, 10_000);
  const warn = (what: string, error: unknown) => {
    const { pass, swallowed } = may();
    if (!pass) return;
    const why = error instanceof Error ? plain(error.message).slice(0, 300) : '';
    options.log.warn({ swallowed }, `guest egress: ${what}: ${why}`);
  };
  let open = 0;
  session.on('stream', (stream, headers) => {
    stream.on('error', error => warn('a request failed', error));
    if (open >= MAX_REQUESTS) {
      respond(stream, 429, { code: 'too_many', detail: `at most ${MAX_REQUESTS} requests at once` });
      return;
    }
    open++;
    const timer = setTimeout(() => stream.close(NGHTTP2_CANCEL), REQUEST_MS);
    stream.once('close', () => {
      open--;
      clearTimeout(timer);
    });
    handle(stream, headers, options).catch(error => {
      warn('a request was refused', error);
      respond(stream, 400, { code: 'invalid', detail: error instanceof Error ? error.message : 'unreadable' });
    });
  });
  session.on('error', error => warn('the connection failed', error));
};

export interface Egress {
  /** Settles when the connection has ended; never rejects. */
  readonly ended: Promise<void>;
  close(): void;
}

/** Serves the guest's requests on one egress connection until it ends. */
export const serveEgress = (duplex: Duplex, options: EgressOptions): Egress => {
  const done = Promise.withResolvers<void>();
  let session: ServerHttp2Session | undefined;
  let over = false;
  const end = () => {
    if (over) return;
    over = true;
    session?.destroy();
    duplex.destroy();
    done.resolve();
  };
  duplex.on('error', end);
  duplex.on('end', end);
  duplex.on('close', end);
  session = http2.performServerHandshake(duplex, {
    maxSessionMemory: 16,
    maxHeaderListPairs: 64,
    settings: { initialWindowSize: STREAM_WINDOW, maxConcurrentStreams: 128, maxHeaderListSize: 16 * 1024 },
  });
  session.setLocalWindowSize(CONNECTION_WINDOW);
  serveSession(session, options);
  session.on('close', end);
  if (duplex.destroyed) end();
  return { ended: done.promise, close: end };
};
