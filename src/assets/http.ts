/**
 * HTTPS as assets come by it: every URL and every redirect is HTTPS, every wait has a deadline, what failed in passing is asked for
 * again. node:https, not fetch: fetch takes twice as long for the same bytes.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { Fault } from '../api/fault.ts';
import { pause } from '../lib/deadline.ts';
import { plain } from '../lib/text.ts';
import { VERSION } from '../lib/version.ts';
import { watched } from './stall.ts';

export interface Times {
  /** To a connection that speaks TLS, ms. */
  connect_ms: number;
  /** From there to the head of the answer, ms. */
  headers_ms: number;
  /** In any such time at least `STALL_BYTES` have to come, ms. */
  stall_ms: number;
  /** Before the second attempt, ms; it doubles with each further one. */
  retry_ms: number;
}

export const TIMES: Times = { connect_ms: 20_000, headers_ms: 30_000, stall_ms: 30_000, retry_ms: 500 };

export interface HttpOptions {
  signal: AbortSignal;
  times?: Partial<Times>;
  /** Default: one for this call alone. */
  agent?: Agent;
  headers?: Record<string, string>;
  /** The bearer token for a URL. Asked for the first URL only; goes nowhere but to its host. */
  token?: ((url: URL) => string | undefined) | undefined;
  /** Makes a fault of its own out of a status that is not 200; it is final. */
  explain?: (status: number, headers: IncomingHttpHeaders) => Fault | undefined;
  onLog?: (line: string) => void;
}

export interface Answer {
  response: IncomingMessage;
  /** After all redirects. */
  url: URL;
}

export const ATTEMPTS = 5;
const MAX_REDIRECTS = 5;
const MAX_BACKOFF_MS = 30_000;
/** A server that asks for more patience than this is one that cannot be had now, ms. */
const MAX_RETRY_AFTER_MS = 60_000;

/** Failed in a way that may pass. */
export class Passing extends Error {
  /** What the server asked to wait, ms. */
  readonly after_ms: number | undefined;
  constructor(message: string, after_ms?: number) {
    super(message);
    this.name = 'Passing';
    this.after_ms = after_ms;
  }
}

const KEPT = { keepAlive: true, keepAliveMsecs: 10_000, maxSockets: 8, maxFreeSockets: 2 };
/** Connections of one download. The caller destroys it. HTTPS_PROXY and NO_PROXY count; NODE_TLS_REJECT_UNAUTHORIZED does not. */
export const makeAgent = (): Agent => new Agent({ ...KEPT, proxyEnv: process.env, rejectUnauthorized: true });

/** A URL as text without what could be a secret in it. */
export const shown = (url: URL): string => plain(`${url.origin}${url.pathname}`).slice(0, 300);

/** The URL, which must be HTTPS and carry no password. */
export const httpsUrl = (text: string, base?: URL): URL => {
  const url = URL.parse(text, base);
  if (url === null) throw new Fault('invalid', `Cannot use '${plain(text).slice(0, 300)}': it is no URL.`);
  if (url.protocol !== 'https:')
    throw new Fault(
      base === undefined ? 'invalid' : 'unverified',
      base === undefined
        ? `Cannot use ${shown(url)}: only https URLs are.`
        : `Cannot use ${shown(base)}: it leads to ${plain(url.protocol)}//${url.host}, and only https is used.`,
    );
  if (url.username !== '' || url.password !== '')
    throw new Fault('invalid', `Cannot use ${shown(url)}: no name and password may stand in a URL.`);
  return url;
};

const errno = (error: unknown): string =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : '';

/** Names of OpenSSL for a certificate that is not to be trusted. */
const CERTIFICATE =
  /^(CERT_|ERR_TLS_CERT|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|INVALID_CA|PATH_LENGTH)/;

const reach = (url: URL): string =>
  `See that this host reaches ${url.host}; where a proxy is needed, HTTPS_PROXY of the daemon names it.`;

/** What a failure of the connection means to the reader; a `Passing` one may be tried again. */
const meaning = (url: URL, error: unknown): Error => {
  if (error instanceof Fault || error instanceof Passing) return error;
  const code = errno(error);
  const words = plain(error instanceof Error ? error.message : String(error)).slice(0, 300);
  if (CERTIFICATE.test(code))
    return new Fault('unverified', `Cannot trust ${url.host}: ${words || code} (${code}).`, { cause: error });
  if (code === 'ENOTFOUND')
    return new Fault('host', `Cannot reach ${url.host}: there is no such name.`, { hint: reach(url), cause: error });
  return new Passing(words || code || 'the connection failed');
};

/** Seconds or a date, as ms from now. RFC 9110, 10.2.3. */
const retryAfter = (text: string | undefined): number | undefined => {
  if (text === undefined) return undefined;
  const ms = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined;
};

/** One request, to the head of its answer. */
const ask = (url: URL, headers: Record<string, string>, agent: Agent, times: Times, signal: AbortSignal) =>
  new Promise<IncomingMessage>((resolve, reject) => {
    const wait = (ms: number, what: string) =>
      setTimeout(() => sent.destroy(new Passing(`${url.host} ${what} in ${ms} ms`)), ms);
    const sent = request(url, { agent, headers, signal });
    let timer = wait(times.connect_ms, 'could not be reached');
    const connected = () => {
      clearTimeout(timer);
      timer = wait(times.headers_ms, 'gave no answer');
    };
    sent.once('socket', (socket: Socket) => {
      const ready = socket instanceof TLSSocket && !socket.connecting && socket.getProtocol() !== null;
      if (ready) connected();
      else socket.once('secureConnect', connected);
    });
    sent.on('error', reject); // stays: a later one is told by the response too
    sent.once('close', () => clearTimeout(timer));
    sent.once('response', response => {
      clearTimeout(timer);
      response.on('error', () => {}); // who reads it sees it
      resolve(response);
    });
    sent.end();
  });

/** The fault or the passing failure that a status means; undefined if it is the answer. */
const refusal = (url: URL, response: IncomingMessage, wanted: readonly number[], explain?: HttpOptions['explain']) => {
  const status = response.statusCode ?? 0;
  if (wanted.includes(status)) return undefined;
  const own = explain?.(status, response.headers);
  if (own !== undefined) return own;
  if (status === 404 || status === 410) return new Fault('not_found', `Cannot find ${shown(url)}: it is not there.`);
  const after = retryAfter(response.headers['retry-after']);
  if ((status >= 500 || status === 429 || status === 408) && (after ?? 0) <= MAX_RETRY_AFTER_MS)
    return new Passing(`${url.host} answers ${status}`, after);
  return new Fault('host', `Cannot fetch ${shown(url)}: ${url.host} answers ${status}.`, {
    hint: after === undefined ? undefined : `It asks to come back in ${Math.ceil(after / 1000)} s.`,
  });
};

/** Follows redirects to an answer with a wanted status, once; its body is unread. */
const follow = async (
  start: URL,
  options: HttpOptions & { agent: Agent },
  extra: Record<string, string>,
  wanted: readonly number[],
): Promise<Answer> => {
  const times = { ...TIMES, ...options.times };
  const token = options.token?.(start);
  let url = start;
  for (let hops = 0; ; hops++) {
    const headers = {
      'user-agent': `nexus/${VERSION}`,
      accept: '*/*',
      'accept-encoding': 'identity',
      ...options.headers,
      ...extra,
      ...(token !== undefined && url.host === start.host ? { authorization: `Bearer ${token}` } : {}),
    };
    let response: IncomingMessage;
    try {
      response = await ask(url, headers, options.agent, times, options.signal);
    } catch (error) {
      options.signal.throwIfAborted();
      throw meaning(url, error);
    }
    const { location } = response.headers;
    if (![301, 302, 303, 307, 308].includes(response.statusCode ?? 0) || location === undefined) {
      const refused = refusal(url, response, wanted, options.explain);
      if (refused === undefined) return { response, url };
      response.destroy();
      throw refused;
    }
    response.destroy();
    if (hops === MAX_REDIRECTS)
      throw new Fault('host', `Cannot fetch ${shown(start)}: it is redirected more than ${MAX_REDIRECTS} times.`);
    url = httpsUrl(location, url);
  }
};

/** Attempts that are left. Whoever makes progress may fill it up again. */
export interface Patience {
  failed: number;
  last: string;
}

/** Waits before the next attempt, or throws if there have been enough. */
export const beforeRetry = async (
  url: URL,
  patience: Patience,
  failure: Passing,
  options: HttpOptions,
): Promise<void> => {
  patience.failed++;
  patience.last = failure.message;
  if (patience.failed >= ATTEMPTS)
    throw new Fault('host', `Cannot fetch ${shown(url)}: ${failure.message} (${ATTEMPTS} attempts).`, {
      hint: reach(url),
      cause: failure,
    });
  const base = (options.times?.retry_ms ?? TIMES.retry_ms) * 2 ** (patience.failed - 1);
  const ms = Math.max(Math.min(MAX_BACKOFF_MS, base * (0.5 + Math.random())), failure.after_ms ?? 0);
  options.onLog?.(`${failure.message}; trying again in ${Math.ceil(ms / 1000)} s`);
  await pause(ms, options.signal);
};

/** An answer, after as many attempts as it takes; its body is unread. */
export const answerOf = async (
  url: URL,
  options: HttpOptions & { agent: Agent },
  patience: Patience,
  extra: Record<string, string> = {},
  wanted: readonly number[] = [200],
): Promise<Answer> => {
  for (;;) {
    try {
      return await follow(url, options, extra, wanted);
    } catch (error) {
      options.signal.throwIfAborted();
      if (!(error instanceof Passing)) throw error;
      await beforeRetry(url, patience, error, options);
    }
  }
};

/** Reads a body to its end; a failure of the connection is `Passing`. */
export const bodyOf = async function* (answer: Answer, options: HttpOptions): AsyncGenerator<Buffer> {
  const { response, url } = answer;
  try {
    yield* watched(response, options.times?.stall_ms ?? TIMES.stall_ms);
    if (!response.complete) throw new Passing('the connection was cut');
  } catch (error) {
    options.signal.throwIfAborted();
    throw meaning(url, error);
  } finally {
    if (!response.complete) response.destroy();
  }
};

export interface Fetched {
  bytes: Buffer;
  headers: IncomingHttpHeaders;
  /** After all redirects. */
  url: URL;
}

const readAll = async (answer: Answer, max: number, options: HttpOptions): Promise<Buffer> => {
  const tooLong = () => new Fault('unsupported', `Cannot use ${shown(answer.url)}: it is longer than ${max} bytes.`);
  if (Number(answer.response.headers['content-length'] ?? 0) > max) {
    answer.response.destroy();
    throw tooLong();
  }
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of bodyOf(answer, options)) {
    size += chunk.length;
    if (size > max) throw tooLong();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, size);
};

/** Something small, whole: a list, a signature, an answer of an API. */
export const getBytes = async (start: string, options: HttpOptions & { max_bytes: number }): Promise<Fetched> => {
  const url = httpsUrl(start);
  const own = options.agent === undefined ? makeAgent() : undefined;
  const all = { ...options, agent: options.agent ?? own ?? makeAgent() };
  const patience: Patience = { failed: 0, last: '' };
  try {
    for (;;) {
      const answer = await answerOf(url, all, patience);
      try {
        const bytes = await readAll(answer, options.max_bytes, all);
        return { bytes, headers: answer.response.headers, url: answer.url };
      } catch (error) {
        if (!(error instanceof Passing)) throw error;
        await beforeRetry(url, patience, error, all);
      }
    }
  } finally {
    own?.destroy();
  }
};
