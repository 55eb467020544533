/** What stands between a person's terminal and the guest's: the keys that leave, and the modes that are switched back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Keyboard } from '../src/cli/keyboard.ts';
import { Modes } from '../src/cli/modes.ts';
import { sleep } from '../src/lib/deadline.ts';

const board = () => {
  const seen: string[] = [];
  const keyboard = new Keyboard({
    onKeys: bytes => seen.push(bytes.toString('latin1')),
    onLeave: () => seen.push('LEFT'),
  });
  return { seen, type: (text: string) => keyboard.type(Buffer.from(text, 'latin1')) };
};

test('Ctrl-P Ctrl-Q leaves, in one piece or two, with what was typed before', async () => {
  for (const pieces of [['ls\u0010\u0011'], ['ls', '\u0010', '\u0011'], ['ls\u0010', '\u0011x']]) {
    const b = board();
    for (const piece of pieces) b.type(piece);
    assert.deepEqual(b.seen, ['ls', 'LEFT']);
  }
  const other = board();
  other.type('\u0010');
  other.type('a\u0010\u0010');
  other.type('\u0011\u0011');
  assert.deepEqual(other.seen, ['\u0010a\u0010', 'LEFT']);
  const alone = board();
  alone.type('\u0010');
  assert.deepEqual(alone.seen, []);
  await sleep(700);
  assert.deepEqual(alone.seen, ['\u0010'], 'it was meant for the program');
  alone.type('\u0011');
  assert.deepEqual(alone.seen, ['\u0010', '\u0011']);
});

test('keys without the two pass unchanged, however they are cut', () => {
  fc.assert(
    fc.property(fc.array(fc.stringMatching(/^[\u0000-\u000f\u0011-\u00ff]{0,9}$/)), pieces => {
      const b = board();
      for (const piece of pieces) b.type(piece);
      assert.equal(b.seen.join(''), pieces.join(''));
    }),
  );
});

const after = (...pieces: string[]): string => {
  const modes = new Modes();
  for (const piece of pieces) modes.see(Buffer.from(piece, 'latin1'));
  return modes.undo();
};

test('what programs switched on is switched off, and nothing else', () => {
  const CSI = '\u001b[';
  assert.equal(after('plain', `${CSI}31m`, `${CSI}?1049h...${CSI}?1049l`), `${CSI}0m`);
  const vim = `${CSI}?1049h${CSI}?1h\u001b=${CSI}?2004h${CSI}?1;12;25l`;
  assert.equal(after(vim), `${CSI}?25h${CSI}?1049l${CSI}?2004l\u001b>${CSI}0m`);
  assert.equal(after(`${CSI}?10`, '06h'), `${CSI}?1006l${CSI}0m`, 'a sequence in two pieces');
  assert.equal(after(`${CSI}?10`), `\u001b\\${CSI}0m`, 'one that was cut off is ended');
  assert.equal(after('\u001b]0;a title'), `\u001b\\${CSI}0m`);
  assert.equal(after('\u001b'), `\u001b\\${CSI}0m`);
  assert.equal(after(`${CSI}?9999999999999h${CSI}?;h`), `${CSI}0m`);
});

test('modes are seen the same however the bytes are cut', () => {
  const piece = fc.constantFrom(
    '\u001b[?1049h',
    '\u001b[?1049l',
    '\u001b[?25l',
    '\u001b[?1;2004h',
    'x\n',
    '\u001b[2J',
    '\u001b=',
    '\u001b>',
  );
  fc.assert(
    fc.property(fc.array(piece), fc.infiniteStream(fc.integer({ min: 1, max: 7 })), (pieces, cuts) => {
      const text = pieces.join('');
      const parts: string[] = [];
      for (let at = 0; at < text.length; ) {
        const n = Number(cuts.next().value);
        parts.push(text.slice(at, at + n));
        at += n;
      }
      assert.equal(after(...parts), after(text));
    }),
  );
});
