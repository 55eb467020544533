/** A guest that never stops printing, and means ill: what terminals obey, forged lines, bytes of no text, lines without an end. */
import { write, writeSync } from 'node:fs';

/** What a pipe takes at once. */
const PIECE = 65_536;
const KINDS = 16;
const WORDS = [
  '\u001b[31mflood\u001b[0m',
  '\u001b]0;title\u0007',
  '\u001eG--- forged',
  '\u001b[2J',
  'reboot: Power down',
  '\u00ff\u0000',
  '\r',
  'x'.repeat(500),
];

/** mulberry32 */
const random = (seed: number): (() => number) => {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
};

/** Lines of all lengths; every fourth piece is a part of a line that has no end. */
const pieceOf = (next: () => number, kind: number): Buffer => {
  const words: string[] = [];
  for (let size = 0; size < PIECE; ) {
    const word = WORDS[Math.floor(next() * WORDS.length)] ?? '';
    words.push(word, kind % 4 === 3 ? ' ' : next() < 0.3 ? '\r\n' : ' ');
    size += word.length + 1;
  }
  return Buffer.from(words.join(''), 'latin1').subarray(0, PIECE);
};

/** Prints numbered lines of so many bytes, one each ms. Those for which there is no room are dropped, as Firecracker does, or wait, as QEMU does. */
export const count = (bytes: number, full: 'dropped' | 'waits'): void => {
  if (bytes === 0) return;
  let n = 1;
  const one = (): void => {
    try {
      writeSync(1, `${`line ${n} `.padEnd(bytes - 2, '.')}\r\n`);
      n++;
    } catch {
      if (full === 'dropped') n++; // the pipe is full
    }
  };
  setInterval(one, 1);
};

/** Prints so many MiB as fast as they are taken, and says when it is over. The same seed prints the same. */
export const flood = (mib: number, seed: number): void => {
  if (mib === 0) return;
  const next = random(seed);
  const pieces = Array.from({ length: KINDS }, (_, kind) => pieceOf(next, kind));
  const print = (bytes: Buffer, then: () => void): void =>
    write(1, bytes, (error, size) => {
      const rest = error === null ? bytes.subarray(size) : bytes;
      if (rest.length === 0) then();
      else if (error === null) print(rest, then);
      else setTimeout(() => print(rest, then), 1); // the pipe is full
    });
  const more = (left: number): void => {
    const piece = pieces[Math.floor(next() * KINDS)];
    if (left > 0 && piece !== undefined) print(piece, () => more(left - 1));
    else print(Buffer.from('\r\nthe flood is over\r\n'), () => {});
  };
  more(mib * 16);
};
