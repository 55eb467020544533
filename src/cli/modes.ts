/**
 * What programs in a terminal have switched on, seen in what they write: whoever leaves in the middle switches it off again, for the
 * terminal is his own.
 */

/** Private modes (ESC [ ? n h or l) that would be in the way, and whether each is on in a terminal that nobody has touched. */
const MODES: ReadonlyMap<number, boolean> = new Map([
  [1, false], // cursor keys of an application
  [7, true], // lines wrap
  [9, false], // mouse
  [12, false],
  [25, true], // the cursor is seen
  [47, false], // the other screen
  [1000, false], // mouse
  [1002, false],
  [1003, false],
  [1004, false], // focus
  [1005, false],
  [1006, false],
  [1015, false],
  [1047, false],
  [1049, false],
  [2004, false], // bracketed paste
]);
/** An unfinished sequence is kept up to this length: longer ones are none of these. */
const REST_MOST = 64;

export class Modes {
  readonly #changed = new Set<number>();
  #keypad = false;
  #rest = '';

  /** What the terminal was given to show. */
  see(bytes: Uint8Array): void {
    const text = this.#rest + Buffer.from(bytes).toString('latin1');
    for (const [, list = '', to, keypad] of text.matchAll(/\u001b(?:\[\?([\d;]{1,40})([hl])|([=>]))/g)) {
      if (keypad !== undefined) this.#keypad = keypad === '=';
      for (const mode of list.split(';').map(Number)) {
        const normal = MODES.get(mode);
        if (normal === undefined) continue;
        if ((to === 'h') === normal) this.#changed.delete(mode);
        else this.#changed.add(mode);
      }
    }
    const last = text.lastIndexOf('\u001b');
    const open = last >= 0 && !/^\u001b(?:\[[0-?]*[ -/]*[@-~]|[^[\]PX^_])/.test(text.slice(last));
    this.#rest = open && text.length - last <= REST_MOST ? text.slice(last) : '';
  }

  /** What brings the terminal back; nothing where nothing was changed. */
  undo(): string {
    const off = [...this.#changed].sort((a, b) => a - b).map(n => `\u001b[?${n}${MODES.get(n) ? 'h' : 'l'}`);
    // an unfinished sequence would swallow what comes next: ST ends it
    const parts = [this.#rest === '' ? '' : '\u001b\\', ...off, this.#keypad ? '\u001b>' : '', '\u001b[0m'];
    this.#changed.clear();
    this.#keypad = false;
    this.#rest = '';
    return parts.join('');
  }
}
