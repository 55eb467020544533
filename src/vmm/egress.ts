/**
 * The machine's egress stream: a port is plugged before the start and a new one when it is lost.
 *
 * INVARIANTS: one egress port at a time. Every stream goes to the handler once; while there is no handler the newest
 * waits for it (an older one that ended meanwhile is forgotten). A stream that does not last makes the next one wait longer.
 */
import type { Duplex } from 'node:stream';
import { sleep } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { Handover } from './handover.ts';
import type { Ports } from './ports.ts';

const MIN_BACKOFF_MS = 10;
const MAX_BACKOFF_MS = 1000;
/** A stream that lived this long was a good one. */
const GOOD_MS = 5000;

export class Egress {
  readonly #ports: Ports;
  readonly #log: Log;
  readonly #stop = new AbortController();
  readonly #first = Promise.withResolvers<void>();
  readonly #handover = new Handover();
  #running: Promise<void> | undefined;

  constructor(ports: Ports, log: Log) {
    this.#ports = ports;
    this.#log = log;
    this.#first.promise.catch(() => {});
  }

  /** Starts plugging. Resolves when the first port is plugged; rejects if that failed (later failures are tried again). */
  start(): Promise<void> {
    this.#running ??= this.#run();
    return this.#first.promise;
  }

  onStream(handler: (stream: Duplex) => void): void {
    this.#handover.onStream(handler);
  }

  close(): void {
    this.#stop.abort(new Error('the machine has been let go'));
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    for (let backoff = MIN_BACKOFF_MS; !signal.aborted; backoff = Math.min(backoff * 2, MAX_BACKOFF_MS)) {
      const since = performance.now();
      try {
        const port = await this.#ports.open('egress', signal);
        this.#first.resolve();
        this.#handover.give(port.socket);
        await port.gone;
      } catch (error) {
        this.#first.reject(error);
        if (!signal.aborted) this.#log.debug({ err: error }, 'the egress port could not be plugged yet');
      }
      if (performance.now() - since > GOOD_MS) backoff = MIN_BACKOFF_MS;
      await sleep(backoff, undefined, { signal }).catch(() => {});
    }
  }
}
