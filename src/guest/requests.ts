/**
 * Requests over whatever control connection is current: again where that is safe, with a deadline, with errors for the
 * reader.
 */
import http2, { type IncomingHttpHeaders, type OutgoingHttpHeaders } from 'node:http2';
import { Fault } from '../api/fault.ts';
import { DeadlineError, pause, raced, within } from '../lib/deadline.ts';
import { Slots } from '../lib/slots.ts';
import { type Offsets, Source } from './exec.ts';
import type { Keeper } from './keeper.ts';
import { type Answer, call, type Link, LostError, ping, readBody, statusOf } from './link.ts';
import { refusal } from './refusal.ts';
import { sendChunk } from './send.ts';
import { ID } from './wire.ts';

/** Of the 128 streams of a connection 112 carry content; of the other 16 one is kept for the ping. */
const SMALL = 15;
const CALL_MS = 10_000;
const RETRY_LEAST_MS = 10;
const RETRY_MOST_MS = 1000;
const PID = /^[1-9]\d{0,9}$/;
const FROM = /^(\d{1,15}) (\d{1,15})$/;

/** A command's output from its first answer on. */
export interface Opened {
  source: Source;
  pid: number;
  id: string;
  from: Offsets;
}

const offsetsOf = (header: unknown): Offsets | undefined => {
  const [, stdout, stderr] = typeof header === 'string' ? (FROM.exec(header) ?? []) : [];
  return stdout === undefined ? undefined : { stdout: Number(stdout), stderr: Number(stderr) };
};

export interface SmallRequest {
  /** Completes "Cannot …". */
  what: string;
  method: 'GET' | 'POST';
  path: string;
  body?: unknown;
  /** Most bytes of the answer; 64 KiB by default. */
  most?: number;
  /** True: doing it twice does no harm. */
  again: boolean;
  /** The fault for an answer that is no success; default: `refusal`. */
  refused?: typeof refusal;
}

/** A request whose answer is streamed. Doing it twice does no harm. */
export interface StreamRequest {
  what: string;
  headers: OutgoingHttpHeaders;
  body?: Buffer;
  /** The body comes later, from whoever gets the stream. */
  open?: boolean;
  /** It does harm where one agent after another does it: only the one that was asked first is asked again. */
  once?: boolean;
  refused: (status: number, body: Buffer) => Fault;
}

/** A request whose answer is a command's output. */
export interface OutputRequest extends StreamRequest {
  /** Of the command that is asked for; it may turn out to be another that was there. */
  id: string;
  /** What the output is counted from, where the guest does not say. */
  from: Offsets;
}

interface Streamed {
  source: Source;
  headers: IncomingHttpHeaders;
}

/** Worth another try: the connection was lost, or the guest still counts streams of a connection that was. */
const passing = (error: unknown): boolean =>
  error instanceof LostError || (error instanceof Fault && error.code === 'busy');

export class Requests {
  readonly #keeper: Keeper;
  readonly #small = new Slots(SMALL);
  /** Somebody has the connection alone, until this is resolved. */
  #taken: PromiseWithResolvers<void> | undefined;

  constructor(keeper: Keeper) {
    this.#keeper = keeper;
  }

  /** Aborted with the caller's signal or when the guest is closed. */
  bounded(signal: AbortSignal): AbortSignal {
    return AbortSignal.any([signal, this.#keeper.closing]);
  }

  async link(signal: AbortSignal): Promise<Link> {
    using limit = within('the connection to the guest', CALL_MS, signal);
    return await this.#link(limit.signal);
  }

  async #link(signal: AbortSignal): Promise<Link> {
    while (this.#taken !== undefined) await raced(this.#taken.promise, signal);
    return await this.#keeper.link(signal);
  }

  /** The connection for one alone: until it is disposed, requests that have not begun wait. */
  async alone(signal: AbortSignal): Promise<Disposable & { link(signal: AbortSignal): Promise<Link> }> {
    while (this.#taken !== undefined) await raced(this.#taken.promise, signal);
    const taken = Promise.withResolvers<void>();
    this.#taken = taken;
    return {
      link: limit => this.#keeper.link(limit),
      [Symbol.dispose]: () => {
        this.#taken = undefined;
        taken.resolve();
      },
    };
  }

  /** Runs `deed`; what it throws becomes a fault that begins "Cannot `what`". */
  async told<T>(what: string, signal: AbortSignal, deed: () => Promise<T>): Promise<T> {
    try {
      return await deed();
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof DeadlineError) {
        this.#keeper.suspect();
        throw new Fault('timeout', `Cannot ${what}: ${error.message}.`, { cause: error });
      }
      if (error instanceof LostError) throw new Fault('guest', `Cannot ${what}: ${error.message}.`, { cause: error });
      throw error;
    }
  }

  /** A small request and its answer of 2xx. */
  async call(request: SmallRequest, signal: AbortSignal): Promise<Answer> {
    const { what, again } = request;
    return await this.told(what, signal, async () => {
      using limit = within('the answer of the guest', CALL_MS, this.bounded(signal));
      using _place = await this.#small.take(1, limit.signal);
      const lost = (error: unknown) => again && error instanceof LostError;
      return await this.#tries(limit.signal, lost, async link => {
        const answer = await call(link, request, limit.signal);
        if (answer.status >= 200 && answer.status < 300) return answer;
        throw (request.refused ?? refusal)(what, answer.status, answer.body);
      });
    });
  }

  /** Round trip to the agent and back on the present connection, ms. */
  async ping(signal: AbortSignal): Promise<number> {
    return await this.told('reach the guest', signal, async () => {
      using limit = within('the answer to a ping', CALL_MS, this.bounded(signal));
      return await this.#tries(limit.signal, passing, async link => {
        const start = performance.now();
        await ping(link, limit.signal);
        return performance.now() - start;
      });
    });
  }

  /** Does it on whatever link is current, again and again while `may` says so. */
  async #tries<T>(signal: AbortSignal, may: (error: unknown) => boolean, deed: (link: Link) => Promise<T>): Promise<T> {
    for (let delay = 0; ; delay = Math.min(RETRY_MOST_MS, Math.max(RETRY_LEAST_MS, delay * 2))) {
      if (delay > 0) await pause(delay, signal);
      const link = await this.#link(signal);
      try {
        return await deed(link);
      } catch (error) {
        signal.throwIfAborted();
        if (!may(error)) throw error;
      }
    }
  }

  /** A command's output from its first answer on, within `ms` for all tries. */
  async output(request: OutputRequest, ms: number, signal: AbortSignal): Promise<Opened> {
    const { source, headers } = await this.stream(request, ms, signal);
    try {
      const pid = headers['nexus-exec-pid'];
      if (typeof pid !== 'string' || !PID.test(pid)) {
        throw new Fault('guest', `Cannot ${request.what}: the guest did not name the process.`);
      }
      const { 'nexus-exec-id': id = request.id, 'nexus-exec-from': from } = headers;
      if (typeof id !== 'string' || !ID.test(id)) {
        throw new Fault('guest', `Cannot ${request.what}: the guest did not name the command.`);
      }
      return { source, pid: Number(pid), id, from: offsetsOf(from) ?? request.from };
    } catch (error) {
      source.stream.close(http2.constants.NGHTTP2_CANCEL);
      throw error;
    }
  }

  /** An answer that is streamed, from its head on, within `ms` for all tries. */
  async stream(request: StreamRequest, ms: number, signal: AbortSignal): Promise<Streamed> {
    return await this.told(request.what, signal, async () => {
      using limit = within('the answer of the guest', ms, this.bounded(signal));
      let first: string | undefined;
      /** What the guest said last, if it heard each request to its end. */
      let no: Fault | undefined;
      let lost = false;
      const tries = this.#tries(limit.signal, passing, async link => {
        no = undefined;
        const agent = this.#keeper.facts?.agent_id;
        const headers = first === undefined ? request.headers : { ...request.headers, 'nexus-agent-id': first };
        try {
          return await this.#open(link, { ...request, headers }, limit.signal);
        } catch (error) {
          if (request.once && error instanceof LostError) first ??= agent;
          if (error instanceof LostError) lost = true;
          else if (error instanceof Fault) no = error;
          throw error;
        }
      });
      return await tries.catch(error => {
        throw error instanceof DeadlineError && no !== undefined && !lost ? no : error;
      });
    });
  }

  async #open(link: Link, request: StreamRequest, signal: AbortSignal): Promise<Streamed> {
    const { body } = request;
    const stream = link.request(request.headers, body === undefined && request.open !== true);
    const source = new Source(stream, link);
    const cancel = () => stream.close(http2.constants.NGHTTP2_CANCEL);
    signal.addEventListener('abort', cancel, { once: true });
    try {
      const answer = statusOf(stream);
      if (body !== undefined) {
        sendChunk(stream, body).then(whole => whole && stream.end(), cancel);
      }
      const headers = await answer;
      const status = headers[':status'] ?? 0;
      if (status !== 200) throw request.refused(status, await readBody(stream));
      return { source, headers };
    } catch (error) {
      cancel();
      throw error;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }
}
