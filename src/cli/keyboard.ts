/** What is typed, without the two keys that leave: Ctrl-P Ctrl-Q. */

const CTRL_P = 0x10;
const CTRL_Q = 0x11;
/** After a Ctrl-P that nothing followed for so long it was meant for the program. */
const PATIENCE_MS = 500;

export interface KeyboardOptions {
  onKeys: (bytes: Buffer) => void;
  onLeave: () => void;
}

export class Keyboard implements Disposable {
  readonly #options: KeyboardOptions;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: KeyboardOptions) {
    this.#options = options;
  }

  type(bytes: Buffer): void {
    const held = this.#timer !== undefined;
    this[Symbol.dispose]();
    const all = held ? Buffer.concat([Buffer.of(CTRL_P), bytes]) : bytes;
    const leave = all.indexOf(Buffer.of(CTRL_P, CTRL_Q));
    const keys = leave >= 0 ? all.subarray(0, leave) : all;
    if (leave < 0 && keys.at(-1) === CTRL_P) {
      this.#timer = setTimeout(() => {
        this.#timer = undefined;
        this.#options.onKeys(Buffer.of(CTRL_P));
      }, PATIENCE_MS);
      if (keys.length > 1) this.#options.onKeys(keys.subarray(0, -1));
    } else if (keys.length > 0) this.#options.onKeys(keys);
    if (leave >= 0) this.#options.onLeave();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
