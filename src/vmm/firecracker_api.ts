/**
 * Firecracker's API: HTTP over a Unix socket, one request at a time.
 *
 * Facts (its sources, and `firecracker.yaml`): it keeps ten connections and answers 503 on the next one; a body has at most 51,200
 * bytes; it refuses with `{"fault_message": …}`, and what its HTTP server refuses with `{"error": …}`; it closes no connection by itself.
 *
 * INVARIANTS: one connection at most, closed when nothing was asked for IDLE_MS. Every request has a deadline, its turn included;
 * one that is over it ends the connection, so that a late answer is never taken for the next one's. Answers are bounded.
 */
import type { IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import { z } from 'zod';
import { DeadlineError } from '../lib/deadline.ts';
import { plain } from '../lib/text.ts';

// Not by `import`: that touches every export of node:http, and the lazy ones load a WebSocket client, 40 ms of CPU and some MiB.
const { Agent, request } = process.getBuiltinModule('node:http');

/** Its own limit. */
const MAX_REQUEST = 51_200;
const MAX_ANSWER = 256 * 1024;
const IDLE_MS = 1000;
export const REQUEST_MS = 10_000;

const Refused = z.union([
  z.object({ fault_message: z.string() }).transform(body => body.fault_message),
  z.object({ error: z.string() }).transform(body => body.error),
]);

/** Firecracker refused a request. */
export class ApiError extends Error {
  readonly status: number;
  constructor(what: string, status: number, why: string) {
    super(`Firecracker refused ${what}: ${why}`);
    this.name = 'ApiError';
    this.status = status;
  }
}

/** What comes from the API socket is no answer of Firecracker's. */
export class AnswerError extends Error {
  override name = 'AnswerError';
}

/** By its events: to iterate over an answer that has no body costs a start more than the body of any other does. */
const textOf = (answer: IncomingMessage): Promise<string> =>
  new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    answer.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > MAX_ANSWER) reject(new AnswerError(`the API answered with more than ${MAX_ANSWER} bytes`));
      else chunks.push(chunk);
    });
    answer.once('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    answer.once('error', reject);
    answer.once('close', () => reject(new AnswerError('the API broke off in the middle of an answer')));
  });

const jsonOf = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
};

const refusal = (what: string, status: number, text: string): Error => {
  const { data } = Refused.safeParse(jsonOf(text));
  if (data === undefined) return new AnswerError(`the API answered ${what} with status ${status} and no reason`);
  return new ApiError(what, status, plain(data).trim().replace(/\.$/, '').slice(0, 1000));
};

/** Errors of the parser (`HPE_…`) say only that it was no HTTP. */
const named = (error: unknown): unknown =>
  error instanceof Error && 'code' in error && String(error.code).startsWith('HPE_')
    ? new AnswerError(`the API answered with something that is no HTTP (${error.message})`)
    : error;

export class FirecrackerApi {
  readonly #agent: InstanceType<typeof Agent>;
  readonly #ms: number;

  /** `ms`: how long a request may take. */
  constructor(connect: (signal: AbortSignal) => Promise<Socket>, ms = REQUEST_MS) {
    this.#ms = ms;
    this.#agent = new Agent({ keepAlive: true, maxSockets: 1, timeout: IDLE_MS });
    this.#agent.createConnection = (_options, done) => {
      connect(AbortSignal.timeout(ms)).then(
        socket => done?.(null, socket),
        // no stream comes with an error, and none is looked at
        (error: Error) => done?.(error, new Socket()),
      );
      return undefined;
    };
  }

  async get(path: string, signal?: AbortSignal): Promise<unknown> {
    const text = await this.#ask('GET', path, undefined, signal);
    const json = jsonOf(text);
    if (json === undefined) throw new AnswerError(`the API answered GET ${path} with something that is no JSON`);
    return json;
  }

  /** `ms` in place of the usual time that a request may take. */
  async put(path: string, body: object, signal?: AbortSignal, ms?: number): Promise<void> {
    await this.#ask('PUT', path, body, signal, ms);
  }

  async patch(path: string, body: object): Promise<void> {
    await this.#ask('PATCH', path, body);
  }

  close(): void {
    this.#agent.destroy();
  }

  async #ask(
    method: string,
    path: string,
    body: object | undefined,
    signal?: AbortSignal,
    ms = this.#ms,
  ): Promise<string> {
    const what = `${method} ${path}`;
    const bytes = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    if (bytes !== undefined && bytes.length > MAX_REQUEST) {
      throw new ApiError(what, 413, `its body has ${bytes.length} bytes, more than the ${MAX_REQUEST} it takes`);
    }
    try {
      const { status, text } = await this.#exchange({ method, path, bytes, ms, what }, signal);
      if (status === 200 || status === 204) return text;
      throw refusal(what, status, text);
    } catch (error) {
      signal?.throwIfAborted();
      throw named(error);
    }
  }

  /** With one timer and one listener: a request with a signal composed of both costs half as much again. */
  #exchange(
    {
      method,
      path,
      bytes,
      ms,
      what,
    }: { method: string; path: string; bytes: Buffer | undefined; ms: number; what: string },
    signal: AbortSignal | undefined,
  ): Promise<{ status: number; text: string }> {
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; text: string }>();
    const headers = { accept: 'application/json', ...(bytes && { 'content-type': 'application/json' }) };
    const asked = request({ agent: this.#agent, host: 'localhost', method, path, headers });
    const giveUp = (why: unknown) => {
      reject(why);
      asked.destroy();
    };
    const timer = setTimeout(() => giveUp(new DeadlineError(`${what} on Firecracker`, ms)), ms);
    const onAbort = () => giveUp(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
    asked.on('error', reject);
    asked.once('response', answer => {
      textOf(answer).then(text => resolve({ status: answer.statusCode ?? 0, text }), giveUp);
    });
    asked.end(bytes);
    return promise.finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    });
  }
}
