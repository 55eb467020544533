/**
 * One who types on a terminal of the guest.
 *
 * INVARIANTS: one request at a time carries the bytes; it is made with the first of them, and again when the connection under it was
 * lost. No byte is sent twice: what was under way when a connection went may be lost.
 */
import http2, { type ClientHttp2Stream } from 'node:http2';
import { Fault } from '../api/fault.ts';
import { LostError, readBody, statusOf } from './link.ts';
import { refusal } from './refusal.ts';
import type { Requests } from './requests.ts';
import { sendChunk } from './send.ts';

export class Keys {
  readonly #requests: Requests;
  readonly #id: string;
  readonly #over: AbortSignal;
  #stream: ClientHttp2Stream | undefined;
  #refused: Fault | undefined;

  /** Ends with `over`, which ends a wait for the guest, too. */
  constructor(requests: Requests, id: string, over: AbortSignal) {
    this.#requests = requests;
    this.#id = id;
    this.#over = over;
    over.addEventListener('abort', () => this.#stream?.close(http2.constants.NGHTTP2_CANCEL), { once: true });
  }

  /** Resolves when the guest has room for more. A command that has ended takes nothing, and that is no fault. */
  async write(bytes: Buffer): Promise<void> {
    if (this.#over.aborted) return;
    if (this.#refused !== undefined) throw this.#refused;
    if (this.#stream === undefined || this.#stream.closed || this.#stream.destroyed) await this.#open();
    if (this.#stream !== undefined) await sendChunk(this.#stream, bytes);
  }

  async #open(): Promise<void> {
    const what = `type on the terminal of command ${this.#id}`;
    const link = await this.#requests.told(what, this.#over, () => this.#requests.link(this.#over));
    const stream = link.request({ ':method': 'POST', ':path': `/v1/exec/${this.#id}/stdin` }, false);
    this.#stream = stream;
    if (this.#over.aborted) stream.close(http2.constants.NGHTTP2_CANCEL);
    Promise.all([statusOf(stream), readBody(stream)]).then(
      ([head, body]) => {
        const fault = head[':status'] === 200 ? undefined : refusal(what, head[':status'] ?? 0, body);
        if (fault?.code !== 'not_found') this.#refused = fault;
      },
      error => {
        if (!(error instanceof LostError)) this.#refused = error instanceof Fault ? error : undefined;
      },
    );
  }
}
