/**
 * One connection to a port of the guest.
 *
 * INVARIANTS: it is one HTTP/2 stream, made once: what is lost with the connection under it is told, never made up for. Each direction waits
 * for its own reader, and ends by itself.
 */
import http2, { type ClientHttp2Stream } from 'node:http2';
import { Fault } from '../api/fault.ts';
import { bound } from './link.ts';
import { PortFrames, portFrame } from './port_frames.ts';
import { refusal } from './refusal.ts';
import type { Requests } from './requests.ts';
import { sendChunk } from './send.ts';
import { MAX_FRAME } from './wire.ts';

/** The guest waits 10 s for its port. */
const OPEN_MS = 15_000;

export interface PortTarget {
  port: number;
  host?: '127.0.0.1' | '::1' | undefined;
}

export class Port {
  readonly #stream: ClientHttp2Stream;
  readonly #what: string;
  #ended = false;

  constructor(stream: ClientHttp2Stream, what: string) {
    this.#stream = stream;
    this.#what = what;
  }

  /** Resolves when the guest has room for more. What comes after the end, or what the guest's side takes no
   * more, is dropped: its own direction tells. */
  async write(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length && !this.#ended; at += MAX_FRAME)
      await this.#send(bytes.subarray(at, at + MAX_FRAME));
  }

  /** Nothing more will be written. */
  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await this.#send(Buffer.alloc(0));
    if (this.#stream.writable) this.#stream.end();
  }

  async #send(payload: Buffer): Promise<void> {
    await sendChunk(this.#stream, portFrame(payload));
  }

  close(): void {
    if (!this.#stream.closed) this.#stream.close(http2.constants.NGHTTP2_CANCEL);
  }

  /** What the guest's side sends, its end, and the end of it all. Throws where it broke off. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer | 'end', void> {
    const frames = new PortFrames();
    try {
      for await (const chunk of this.#stream) if (Buffer.isBuffer(chunk)) yield* frames.push(chunk);
    } catch (error) {
      if (error instanceof Fault) throw error;
      throw new Fault('guest', `Cannot ${this.#what}: the connection was reset.`, { reason: 'reset', cause: error });
    } finally {
      this.close();
    }
    if (!frames.ended) throw new Fault('guest', `Cannot ${this.#what}: the connection broke off.`, { reason: 'reset' });
  }
}

/** Connects; `onOver` is called when the connection is over. A port where nothing listens is a `guest` fault with the reason `refused`. */
export const openPort = async (
  requests: Requests,
  { port, host }: PortTarget,
  onOver: () => void,
  signal: AbortSignal,
): Promise<Port> => {
  const what = `reach port ${port} of the guest`;
  const query = host === undefined ? '' : `&host=${encodeURIComponent(host)}`;
  const request = {
    what,
    headers: { ':method': 'POST', ':path': `/v1/port?port=${port}${query}` },
    open: true,
    refused: (status: number, body: Buffer) => refused(what, status, body),
  };
  const { source } = await requests.stream(request, OPEN_MS, signal);
  const { stream } = source;
  if (source.closed) onOver();
  else stream.once('close', onOver);
  bound(stream, requests.bounded(signal));
  return new Port(stream, what);
};

const refused = (what: string, status: number, body: Buffer): Fault => {
  const fault = refusal(what, status, body);
  if (status !== 422) return fault;
  const reason = body.includes('"refused"') ? 'refused' : 'unreachable';
  const text = reason === 'refused' ? 'nothing listens there' : 'it does not answer';
  return new Fault('guest', `Cannot ${what}: ${text}.`, { reason });
};
