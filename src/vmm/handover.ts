/** Hands each new egress stream to its handler once; the newest waits while there is none. */
import type { Duplex } from 'node:stream';

export class Handover {
  #handler: ((stream: Duplex) => void) | undefined;
  #waiting: Duplex | undefined;

  give(stream: Duplex): void {
    if (this.#handler === undefined) this.#waiting = stream;
    else this.#handler(stream);
  }

  onStream(handler: (stream: Duplex) => void): void {
    this.#handler = handler;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting !== undefined && !waiting.destroyed) handler(waiting);
  }
}
