/** Both directions of an operation at once. Apart from what makes it, which loads a WebSocket. */

export interface Talk<O, I> extends AsyncIterable<Uint8Array | O>, AsyncDisposable {
  /** Sends bytes or a message. Resolves when more may be sent. */
  send(piece: Uint8Array | I): Promise<void>;
  /** Ends it; the iteration ends, too. */
  close(): void;
  /** Settles when it is over, in whatever way. */
  readonly over: Promise<void>;
}

export type RawTalk = Talk<unknown, unknown>;
