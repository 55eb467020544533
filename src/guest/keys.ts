/**
 * One who types on a terminal of the guest.
 *
 * INVARIANTS: one request at a time carries the bytes; it is made with the first of them, and again when the connection under it was
 * lost. No byte is sent before the guest has taken the request, and none twice: what was under way when a connection went may be lost.
 */
import http2, { type ClientHttp2Stream } from 'node:http2';
import { Fault } from '../api/fault.ts';
import { refusal } from './refusal.ts';
import type { Requests } from './requests.ts';
import { sendChunk } from './send.ts';

const OPEN_MS = 30_000;

export class Keys {
  readonly #requests: Requests;
  readonly #id: string;
  readonly #over: AbortSignal;
  #stream: ClientHttp2Stream | undefined;
  #ended = false;

  /** Ends with `over`, which ends a wait for the guest, too. */
  constructor(requests: Requests, id: string, over: AbortSignal) {
    this.#requests = requests;
    this.#id = id;
    this.#over = over;
    over.addEventListener('abort', () => this.#stream?.close(http2.constants.NGHTTP2_CANCEL), { once: true });
  }

  /** Resolves when the guest has room for more. A command that has ended takes nothing, and that is no fault. */
  async write(bytes: Buffer): Promise<void> {
    if (this.#stream === undefined || this.#stream.closed || this.#stream.destroyed) await this.#open();
    if (this.#stream !== undefined && !this.#over.aborted) await sendChunk(this.#stream, bytes);
  }

  async #open(): Promise<void> {
    if (this.#ended || this.#over.aborted) return;
    const what = `type on the terminal of command ${this.#id}`;
    const headers = { ':method': 'POST', ':path': `/v1/exec/${this.#id}/stdin` };
    const refused = (status: number, body: Buffer) => refusal(what, status, body);
    try {
      const { source } = await this.#requests.stream({ what, headers, open: true, refused }, OPEN_MS, this.#over);
      this.#stream = source.stream.resume(); // it says how many bytes there were, in the end
    } catch (error) {
      if (this.#over.aborted) return;
      if (!(error instanceof Fault && error.code === 'not_found')) throw error;
      this.#ended = true;
    }
  }
}
