/**
 * The standing connection to a QEMU process: made again whenever it ends while the link is open.
 *
 * INVARIANTS: at most one `Qmp` at a time. Nobody gets a new one before `onUp` has put things in order on it. A command
 * waits for a connection, but never longer than its deadline; one that was not sent goes on the next connection. After `close` nothing is connected and all waits reject.
 */
import type { Socket } from 'node:net';
import { sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { Qmp, type QmpEvent, Unsent } from './qmp.ts';

const GREETING_MS = 10_000;
const MIN_BACKOFF_MS = 3;
const MAX_BACKOFF_MS = 250;
/** Each look comes later by a twentieth of the time waited so far: a slow start is hardly made slower. */
const BACKOFF = 1.05;
/** A connection that lived this long was a good one. */
const GOOD_MS = 1000;

export interface LinkOptions {
  connect: (signal: AbortSignal) => Promise<Socket>;
  onEvent: (event: QmpEvent) => void;
  /** Called on each new connection before anybody else may use it. */
  onUp: (qmp: Qmp) => Promise<void>;
  log: Log;
  /** How long a command may take, ms, and before it the wait for a connection. */
  command_ms: number;
}

export class QmpLink {
  readonly #options: LinkOptions;
  readonly #stop = new AbortController();
  /** Resolves with the present connection; replaced when that ends. */
  #up = Promise.withResolvers<Qmp>();
  #present: Qmp | undefined;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#up.promise.catch(() => {});
    void this.#run();
  }

  /** Waits until the link is up. */
  async up(ms: number, signal?: AbortSignal): Promise<void> {
    await withDeadline('the answer of QEMU', ms, this.#up.promise, signal);
  }

  async command(command: string, args?: Record<string, unknown>, ms = this.#options.command_ms): Promise<unknown> {
    for (;;) {
      this.#stop.signal.throwIfAborted();
      const qmp = await withDeadline('the answer of QEMU', ms, this.#up.promise);
      try {
        return await qmp.command(command, args, ms);
      } catch (error) {
        if (!(error instanceof Unsent)) throw error;
        await qmp.closed; // and with it `#up` is a new promise
      }
    }
  }

  /** Settles when the present connection has ended; at once if there is none. */
  async drained(): Promise<void> {
    await this.#present?.closed;
  }

  close(): void {
    if (this.#stop.signal.aborted) return;
    const error = new Error('the machine has been let go');
    this.#stop.abort(error);
    this.#up.reject(error);
    this.#present?.close();
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    for (let backoff = MIN_BACKOFF_MS; !signal.aborted; ) {
      const since = performance.now();
      try {
        await this.#serve();
      } catch (error) {
        this.#options.log.debug({ err: error }, 'no control connection to QEMU');
      }
      await sleep(backoff, undefined, { signal }).catch(() => {});
      const held = performance.now() - since > GOOD_MS;
      backoff = held ? MIN_BACKOFF_MS : Math.min(backoff * BACKOFF, MAX_BACKOFF_MS);
    }
  }

  /** One connection from its opening to its end. */
  async #serve(): Promise<void> {
    const { signal } = this.#stop;
    const qmp = new Qmp(await this.#options.connect(signal), this.#options.onEvent);
    this.#present = qmp;
    let up = false;
    try {
      await qmp.greet(GREETING_MS, signal);
      await this.#options.onUp(qmp);
      up = true;
      this.#up.resolve(qmp);
      await qmp.closed;
    } finally {
      qmp.close();
      this.#present = undefined;
      if (up && !signal.aborted) {
        this.#up = Promise.withResolvers<Qmp>();
        this.#up.promise.catch(() => {});
      }
    }
  }
}
