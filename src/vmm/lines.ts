/** Bytes from a guest to lines of bounded length. */

export const MAX_LINE = 8 * 1024;

/** Where to cut `bytes` at `max` at the latest, not in the middle of a UTF-8 character. */
const cutAt = (bytes: Buffer, max: number): number => {
  let at = max;
  while (at > max - 3 && ((bytes[at] ?? 0) & 0xc0) === 0x80) at--;
  return ((bytes[at] ?? 0) & 0xc0) === 0x80 ? max : at;
};

/** Cuts a stream into lines (without their end); a longer one comes in pieces of at most MAX_LINE bytes. */
export class LineCutter {
  readonly #onLine: (line: Buffer) => void;
  #partial: Buffer = Buffer.alloc(0);

  /** `onLine` gets a view that is good until it returns. */
  constructor(onLine: (line: Buffer) => void) {
    this.#onLine = onLine;
  }

  feed(chunk: Buffer): void {
    let rest = this.#partial.length === 0 ? chunk : Buffer.concat([this.#partial, chunk]);
    while (rest.length > 0) {
      const end = rest.subarray(0, MAX_LINE + 1).indexOf(10);
      if (end !== -1) {
        this.#onLine(rest.subarray(0, end));
        rest = rest.subarray(end + 1);
      } else if (rest.length > MAX_LINE) {
        const at = cutAt(rest, MAX_LINE);
        this.#onLine(rest.subarray(0, at));
        rest = rest.subarray(at);
      } else break;
    }
    this.#partial = Buffer.from(rest);
  }

  /** Gives what came after the last line end. */
  flush(): void {
    if (this.#partial.length > 0) this.#onLine(this.#partial);
    this.#partial = Buffer.alloc(0);
  }
}
