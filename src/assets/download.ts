/** A large file over HTTPS as one stream: a connection that breaks is taken up again at the byte where it stood. */
import type { IncomingHttpHeaders } from 'node:http';
import type { Agent } from 'node:https';
import { Fault } from '../api/fault.ts';
import { formatBytes } from '../lib/size.ts';
import {
  type Answer,
  answerOf,
  beforeRetry,
  bodyOf,
  type HttpOptions,
  httpsUrl,
  Passing,
  type Patience,
  shown,
} from './http.ts';

/** Progress of so many bytes makes earlier failures forgotten. */
const FORGIVING_BYTES = 8 * 1024 * 1024;

/** The bytes that were given out cannot be continued; the reader has to begin anew. */
export class Restart extends Error {
  readonly url: URL;
  constructor(url: URL, message: string) {
    super(message);
    this.name = 'Restart';
    this.url = url;
  }
}

export interface Download {
  /** Of the whole file; undefined if the server does not say. */
  total: number | undefined;
  body: AsyncGenerator<Buffer>;
}

export interface DownloadOptions extends HttpOptions {
  agent: Agent;
  /** Ceiling, bytes. */
  max_bytes: number;
  /** Shared by the restarts of one download. */
  patience: Patience;
}

const unverified = (url: URL, why: string): Fault => new Fault('unverified', `Cannot trust ${shown(url)}: ${why}.`);

const lengthOf = (headers: IncomingHttpHeaders): number | undefined => {
  const text = headers['content-length'];
  return text === undefined ? undefined : Number(text);
};

/** A date tells two versions of a file apart only if it is so much older than the answer, ms. RFC 9110, 8.8.2.2. */
const STRONG_DATE_MS = 60_000;

/** What tells whether a file is still the same: a strong ETag, else a strong date. RFC 9110, 13.1.5. */
const validator = (headers: IncomingHttpHeaders): string | undefined => {
  const { etag, date = '', 'last-modified': changed = '' } = headers;
  if (etag?.startsWith('"')) return etag;
  return Date.parse(date) - Date.parse(changed) >= STRONG_DATE_MS ? changed : undefined;
};

const tooLarge = (url: URL, max: number): Fault =>
  new Fault('unsupported', `Cannot use ${shown(url)}: it is larger than ${formatBytes(max)}.`);

const noPage = ({ response, url }: Answer): void => {
  if (!/^(text\/html|application\/xhtml)/i.test(response.headers['content-type'] ?? '')) return;
  response.destroy();
  throw unverified(url, 'a web page came instead of a file');
};

/** Checks that a partial answer goes on exactly where we stood, in the same file. */
const checkPart = (answer: Answer, at: number, total: number | undefined): void => {
  const { headers } = answer.response;
  const range = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15}|\*)$/.exec(headers['content-range'] ?? '');
  const [from, to, all] = (range ?? []).slice(1).map(Number);
  const length = lengthOf(headers);
  const sound =
    from === at &&
    to !== undefined &&
    (all === undefined || Number.isNaN(all) || (to === all - 1 && (total === undefined || total === all))) &&
    (length === undefined || length === to - from + 1);
  if (sound) return;
  answer.response.destroy();
  throw unverified(answer.url, 'its parts do not fit together');
};

/** Asks for the rest. */
const resume = async (url: URL, first: Answer, at: number, total: number | undefined, options: DownloadOptions) => {
  const same = validator(first.response.headers);
  if (at > 0 && same === undefined) throw new Restart(url, 'the server cannot go on in the middle of a file');
  const extra: Record<string, string> = at > 0 && same !== undefined ? { range: `bytes=${at}-`, 'if-range': same } : {};
  const answer = await answerOf(url, options, options.patience, extra, [200, 206, 416]);
  const status = answer.response.statusCode;
  if (status === 206 && at > 0) {
    checkPart(answer, at, total);
    return answer;
  }
  answer.response.destroy();
  if (status === 200) throw new Restart(url, 'the server begins at the start again');
  throw unverified(answer.url, `the file is shorter than the server said (status ${status})`);
};

/** Begins a download. Throws `Restart` out of the body where only the start will do. */
export const download = async (start: string, options: DownloadOptions): Promise<Download> => {
  const url = httpsUrl(start);
  const first = await answerOf(url, options, options.patience);
  noPage(first);
  const total = lengthOf(first.response.headers);
  if (total !== undefined && total > options.max_bytes) {
    first.response.destroy();
    throw tooLarge(url, options.max_bytes);
  }
  return { total, body: parts(url, first, total, options) };
};

const parts = async function* (url: URL, first: Answer, total: number | undefined, options: DownloadOptions) {
  let answer = first;
  let at = 0;
  for (let mark = 0; ; ) {
    try {
      for await (const chunk of bodyOf(answer, options)) {
        at += chunk.length;
        if (at > options.max_bytes) throw tooLarge(url, options.max_bytes);
        yield chunk;
      }
      if (total !== undefined && at !== total) throw new Passing(`the connection ended after ${at} of ${total} bytes`);
      return;
    } catch (error) {
      if (!(error instanceof Passing)) throw error;
      if (at - mark > FORGIVING_BYTES) options.patience.failed = 0;
      mark = at;
      await beforeRetry(url, options.patience, error, options);
      answer = await resume(url, first, at, total, options);
    }
  }
};
