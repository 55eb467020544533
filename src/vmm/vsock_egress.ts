/**
 * The socket that the guest dials: Firecracker connects to `<uds_path>_<port>` for it.
 *
 * INVARIANTS: at most MAX_OPEN streams are open; a further one ends the oldest. After MAX_NEW new ones within a second the socket
 * is gone for a second: a guest that dials without end costs next to nothing. (Firecracker waits in its connect while the
 * backlog is full: accepting is never put off instead.) After `close` nothing listens and nothing is listened for again.
 */
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { sleep } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { Handover } from './handover.ts';
import { type RunDir, VSOCK_SOCKET } from './run_dir.ts';

/** A guest has one; the others are those that it or we have not seen the end of yet. */
const MAX_OPEN = 8;
const MAX_NEW = 64;
const WINDOW_MS = 1000;
const REST_MS = 1000;

export class VsockEgress {
  readonly #dir: RunDir;
  readonly #name: string;
  readonly #log: Log;
  readonly #handover = new Handover();
  readonly #open = new Set<Socket>();
  readonly #stop = new AbortController();
  #server: Server | undefined;
  #since = 0;
  #count = 0;

  constructor(dir: RunDir, port: number, log: Log) {
    this.#dir = dir;
    this.#name = `${VSOCK_SOCKET}_${port}`;
    this.#log = log;
  }

  /** Listens; a socket that was left there goes. Where that fails it is tried again until `close`. */
  async listen(): Promise<void> {
    try {
      await this.#bind();
    } catch (error) {
      void this.#again();
      throw error;
    }
  }

  async #bind(): Promise<void> {
    await this.#dir.remove(this.#name);
    this.#stop.signal.throwIfAborted();
    const server = createServer(socket => this.#take(socket));
    this.#server = server; // so that `close` ends it while the directory is still held: its end removes the socket by name
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen({ path: this.#dir.at(this.#name) }, resolve);
    });
    server.on('error', error => this.#log.warn({ err: error }, 'egress: cannot accept'));
    await this.#dir.give(this.#name);
  }

  onStream(handler: (stream: Duplex) => void): void {
    this.#handover.onStream(handler);
  }

  close(): void {
    this.#stop.abort(new Error('the machine has been let go'));
    this.#server?.close();
    for (const socket of this.#open) socket.destroy();
  }

  #take(socket: Socket): void {
    socket.on('error', () => {}); // 'close' follows
    socket.once('close', () => this.#open.delete(socket));
    this.#open.add(socket);
    const [oldest] = this.#open;
    if (this.#open.size > MAX_OPEN) oldest?.destroy();
    if (this.#tooMany()) void this.#rest();
    else this.#handover.give(socket);
  }

  #tooMany(): boolean {
    const now = performance.now();
    if (now - this.#since > WINDOW_MS) {
      this.#since = now;
      this.#count = 0;
    }
    return ++this.#count > MAX_NEW;
  }

  async #rest(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    server.close();
    for (const socket of this.#open) socket.destroy();
    this.#log.warn('egress: the guest dials too often; it is not heard for a second');
    await this.#again();
  }

  async #again(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await sleep(REST_MS, undefined, { signal });
        await this.#bind();
        return;
      } catch (error) {
        if (!signal.aborted) this.#log.error({ err: error }, 'egress: cannot listen, will try again');
      }
    }
  }
}
