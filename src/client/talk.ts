/**
 * A WebSocket to the daemon.
 *
 * INVARIANTS: what came and was not asked for yet is at most what the kernel gave at once: the socket is paused with each piece until
 * the piece is taken. The iteration ends with the daemon's close, or throws its fault; a connection that is lost is `Unreachable`.
 */
import { connect } from 'node:net';
import { WebSocket } from 'ws';
import { Fault } from '../api/fault.ts';
import type { RawTalk } from './raw_talk.ts';
import { faultOf, lost, readText, unreachable } from './transport.ts';

const FRAME_MOST = 16 * 1024 * 1024;
const HOLD_MOST = 256 * 1024;
/** How long the daemon may take to say goodbye. */
const CLOSE_MS = 2000;
const NORMAL = 1000;

/** Resolves when the daemon has taken the operation up. Rejects with its fault. */
export const openTalk = (path: string, url: string, signal: AbortSignal | undefined): Promise<RawTalk> =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const socket = new WebSocket(`ws://nexus${url}`, {
      createConnection: () => connect(path),
      perMessageDeflate: false,
      maxPayload: FRAME_MOST,
    });
    const onAbort = () => socket.terminate();
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.once('close', () => signal?.removeEventListener('abort', onAbort));
    socket.on('error', error => reject(signal?.aborted ? signal.reason : unreachable(path, error)));
    socket.once('unexpected-response', (_request, response) => {
      readText(response, path)
        .then(text => reject(faultOf(text, response.statusCode ?? 500)), reject)
        .finally(() => socket.terminate());
    });
    const talk = new SocketTalk(socket, path, signal);
    socket.once('open', () => resolve(talk));
  });

class SocketTalk implements RawTalk {
  readonly over: Promise<void>;
  readonly #socket: WebSocket;
  readonly #path: string;
  readonly #signal: AbortSignal | undefined;
  readonly #queue: unknown[] = [];
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(socket: WebSocket, path: string, signal: AbortSignal | undefined) {
    this.#socket = socket;
    this.#path = path;
    this.#signal = signal;
    this.over = new Promise(resolve => socket.once('close', () => resolve()));
    socket.on('message', (data, binary) => this.#take(data, binary));
    socket.once('close', code => this.#end(code));
  }

  async send(piece: unknown): Promise<void> {
    const sent = Promise.withResolvers<void>();
    this.#socket.send(piece instanceof Uint8Array ? piece : JSON.stringify(piece), () => sent.resolve());
    if (this.#socket.bufferedAmount > HOLD_MOST) await Promise.race([sent.promise, this.over]);
  }

  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#queue.length = 0;
    this.#wake?.();
    this.#socket.resume();
    this.#socket.close(NORMAL);
    const late = setTimeout(() => this.#socket.terminate(), CLOSE_MS);
    this.over.then(() => clearTimeout(late));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.over;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<unknown, void> {
    try {
      for (;;) {
        const piece = this.#queue.shift();
        if (piece !== undefined) {
          yield piece;
          continue;
        }
        this.#signal?.throwIfAborted();
        if (this.#failure !== undefined) throw this.#failure;
        if (this.#ended) return;
        if (this.#socket.readyState === this.#socket.OPEN) this.#socket.resume();
        await new Promise<void>(resolve => {
          this.#wake = resolve;
        });
      }
    } finally {
      this.close();
    }
  }

  #take(data: unknown, binary: boolean): void {
    if (this.#ended || !Buffer.isBuffer(data)) return;
    const piece = binary ? data : this.#messageOf(data);
    if (piece === undefined) return;
    this.#queue.push(piece);
    this.#socket.pause();
    this.#wake?.();
  }

  #messageOf(data: Buffer): unknown {
    const text = data.toString('utf8');
    const message: unknown = JSON.parse(text);
    if (typeof message !== 'object' || message === null || !('type' in message)) return undefined;
    if (message.type !== 'fault') return message;
    this.#failure ??= faultOf(text, 500);
    return undefined;
  }

  #end(code: number): void {
    if (!this.#ended && code !== NORMAL && this.#failure === undefined) {
      this.#failure = this.#signal?.aborted ? this.#signal.reason : lost(this.#path, new Fault('canceled', `${code}`));
    }
    this.#ended = true;
    this.#wake?.();
  }
}
