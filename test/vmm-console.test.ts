import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { type Console, openConsole, readConsole, readLog } from '../src/vmm/console.ts';
import { type ConsoleItem, textOf } from '../src/vmm/console_marks.ts';
import type { Wanted } from '../src/vmm/console_view.ts';
import { LineCutter, MAX_LINE } from '../src/vmm/lines.ts';

interface Place extends AsyncDisposable {
  fifo: string;
  log: string;
  console: Console;
  /** Runs a shell that holds the FIFO as a VMM does: open for reading and writing, as its standard output. */
  vmm(script: string): ChildProcess;
  /** Runs such a shell to its end. */
  say(script: string): Promise<void>;
}

const place = async (max_log_bytes?: number): Promise<Place> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-console-'));
  const paths = { fifo: join(dir, 'console'), log: join(dir, 'console.log') };
  const console = await openConsole({ ...paths, ...(max_log_bytes === undefined ? {} : { max_log_bytes }) });
  const vmm = (script: string) => spawn('sh', ['-c', `exec 1<>${paths.fifo}; ${script}`], { stdio: 'ignore' });
  const say = async (script: string) => {
    await once(vmm(script), 'exit');
  };
  const dispose = async () => {
    await console.close();
    await rm(dir, { recursive: true, force: true });
  };
  return { ...paths, console, vmm, say, [Symbol.asyncDispose]: dispose };
};

const lineIs = (text: string) => (item: ConsoleItem) => item.type === 'line' && item.line === text;

/** Takes items until one fits; the signal's end is an error. */
const until = async (
  items: AsyncIterable<ConsoleItem>,
  fits: (item: ConsoleItem) => boolean,
): Promise<ConsoleItem[]> => {
  const seen: ConsoleItem[] = [];
  for await (const item of items) {
    seen.push(item);
    if (fits(item)) return seen;
  }
  throw new Error(`it ended after ${JSON.stringify(seen.slice(-3))}`);
};

test('what a VMM wrote is there when it has ended, over many runs', async () => {
  await using p = await place();
  for (let run = 1; run <= 5; run++) {
    await p.say(`printf 'run ${run}\\r\\nlast words ${run}'`);
    assert.deepEqual(await p.console.tail(1), [`last words ${run}`]);
    p.console.note('the VMM has ended');
  }
  const all = await p.console.tail(100);
  assert.equal(all.length, 15);
  assert.equal(all[12], 'run 5');
  assert.match(all[14] ?? '', /^--- \d{4}-\d\d-\d\dT[\d:.]+Z: the VMM has ended$/);
});

test('a gap says from when to when', async () => {
  await using p = await place();
  p.console.note('nobody read', { kind: 'gap', since_ms: 0 });
  assert.match((await p.console.tail(1))[0] ?? '', /^--- 1970-01-01T00:00:00\.000Z to \d{4}-.*Z: nobody read$/);
});

test('escape codes are not shown, and the raw bytes are in the log', async () => {
  await using p = await place();
  await p.say(`printf '\\033[2J\\033]0;title\\007red \\033[31malert\\033[0m\\r\\n'`);
  assert.deepEqual(await p.console.tail(5), ['red alert']);
  assert.ok((await readFile(p.log, 'latin1')).includes('\u001b[31malert'));
});

test('a guest cannot forge a line of ours', async () => {
  await using p = await place();
  const follow = p.console.follow(AbortSignal.timeout(10_000));
  await p.say(`printf '\\036G--- forged\\nend\\n'`);
  const items = await until(follow, lineIs('end'));
  assert.deepEqual(items, [
    { type: 'line', line: ' G--- forged' },
    { type: 'line', line: 'end' },
  ]);
  assert.deepEqual(await p.console.tail(2), [' G--- forged', 'end']);
});

test('follow with past: every line once, whatever happens between', async () => {
  await using p = await place();
  const vmm = p.vmm(`i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i+1)); done; echo end; exec sleep 60`);
  try {
    await poll('first lines', 10_000, async () => ((await p.console.tail(1)).length > 0 ? true : undefined));
    const items = await until(p.console.follow(AbortSignal.timeout(20_000), { tail: 100_000 }), lineIs('end'));
    const lines = items.map(item => (item.type === 'line' ? item.line : item.detail));
    assert.deepEqual(lines, [...Array.from({ length: 3000 }, (_, i) => `line ${i}`), 'end']);
  } finally {
    vmm.kill('SIGKILL');
  }
});

test('notes and gaps reach followers as what they are; the end of the console ends them', async () => {
  await using p = await place();
  const follow = p.console.follow(AbortSignal.timeout(10_000));
  p.console.note('boot');
  p.console.note('lost', { kind: 'gap' });
  await p.console.close();
  const items: ConsoleItem[] = [];
  for await (const item of follow) items.push(item);
  assert.deepEqual(
    items.map(item => item.type),
    ['line', 'gap'],
  );
  const late: ConsoleItem[] = [];
  for await (const item of p.console.follow(AbortSignal.timeout(1000))) late.push(item);
  assert.deepEqual(late, []);
});

test('a gigabyte-like flood without a line end: bounded memory, log and turns; a slow reader learns of its gap', async () => {
  await using p = await place(1024 * 1024);
  const lazy = p.console.follow(AbortSignal.timeout(60_000));
  const before = process.memoryUsage().rss;
  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  let most = 0;
  const watch = setInterval(() => {
    most = Math.max(most, process.memoryUsage().rss - before);
  }, 20);
  await p.say(`head -c 134217728 /dev/zero | tr '\\0' '\\033'; printf '\\nend\\n'`);
  clearInterval(watch);
  delay.disable();
  assert.deepEqual((await p.console.tail(1)).slice(-1), ['end']);
  const files = await Promise.all([p.log, `${p.log}.1`].map(async path => (await stat(path)).size));
  assert.ok(Math.max(...files) <= 1024 * 1024 + 512 * 1024, `log files of ${files}`);
  assert.ok(most < 150 * 1024 * 1024, `${most} bytes more memory`);
  assert.ok(delay.max < 1e9, `the event loop stood still for ${delay.max / 1e6} ms`);
  const items: ConsoleItem[] = [];
  for await (const item of lazy) {
    items.push(item);
    if (item.type === 'gap') p.console.note('over');
    if (item.type === 'line' && item.line.endsWith(': over')) break;
  }
  assert.ok(items.some(item => item.type === 'gap' && /lines were left out/.test(item.detail)));
  assert.ok(items.length < 10_000);
});

test('tail spans both files of the log, also without a console', async () => {
  await using p = await place(4096);
  await p.say(`i=0; while [ $i -lt 600 ]; do echo "line $i"; i=$((i+1)); done`);
  await p.console.tail(1);
  await p.console.close();
  const tail = await readConsole(p.log, 400);
  assert.equal(tail.at(-1), 'line 599');
  assert.ok(tail.length > 100, `${tail.length} lines`);
  const first = Number(tail[1]?.slice(5));
  assert.deepEqual(
    tail.slice(1),
    Array.from({ length: 600 - first }, (_, i) => `line ${first + i}`),
  );
  assert.deepEqual(await readConsole(join(p.log, 'none'), 5), []);
  assert.deepEqual(await readConsole(p.log, 0), []);
});

test('a boot is found by its number, also when the console was opened anew', async () => {
  await using p = await place();
  const past = (wanted: Wanted) => Array.fromAsync(p.console.past(wanted), textOf);
  await p.say(`printf 'before any boot\\n'`);
  assert.deepEqual(await past({ boot: 0 }), ['before any boot'], 'a log of an older Nexus');
  for (let boot = 1; boot <= 3; boot++) {
    p.console.begin(`start ${boot}`);
    await p.say(`printf 'in boot ${boot}\\nunfinished'`);
    await p.console.tail(0);
  }
  assert.equal(p.console.boot, 3);
  const [start = '', ...rest] = await past({ boot: 0 });
  assert.match(start, /^--- \d{4}-\d\d-\d\dT[\d:.]+Z: start 3$/);
  assert.deepEqual(rest, ['in boot 3', 'unfinished']);
  assert.deepEqual((await past({ boot: -2 })).slice(1), ['in boot 1', 'unfinished']);
  assert.deepEqual((await past({ boot: -1, tail: 1 })).slice(0), ['unfinished']);
  assert.equal((await past({ boot: -1, open_end: true })).length, 6);
  assert.deepEqual((await past({ after_boot: 2 })).slice(1), ['in boot 3', 'unfinished']);
  assert.deepEqual(await past({ after_boot: 3 }), []);
  await assert.rejects(past({ boot: -3 }), /There is no boot -3 of this VM: there were 3/);
  await p.console.close();
  const again = await openConsole({ fifo: p.fifo, log: p.log });
  again.begin('start 4');
  assert.equal(again.boot, 4);
  await again.close();
  assert.match((await readConsole(p.log, 1))[0] ?? '', /: start 4$/);
  assert.equal((await Array.fromAsync(readLog(p.log, { boot: -1 }))).length, 3);
});

test('what lies in the FIFO when a boot begins is of the boot before', async () => {
  await using p = await place();
  p.console.begin('start 1');
  await p.console.close();
  const keeper = p.vmm(`echo 'reboot: Power down'; : >${p.log}.said; exec sleep 60`);
  try {
    await poll('its word', 10_000, async () => (await exists(`${p.log}.said`)) || undefined);
    await using again = Object.assign(await openConsole({ fifo: p.fifo, log: p.log }), {
      [Symbol.asyncDispose]: () => again.close(),
    });
    again.begin('start 2');
    const past = (boot: number) => Array.fromAsync(again.past({ boot }), textOf);
    const [start = '', ...rest] = await past(0);
    assert.match(start, /: start 2$/);
    assert.deepEqual(rest, []);
    assert.deepEqual((await past(-1)).slice(1), ['reboot: Power down']);
  } finally {
    keeper.kill('SIGKILL');
  }
});

test('a boot whose beginning cannot be written has nothing of the one before, and begins as soon as it can', async () => {
  await using p = await place(200);
  const past = (boot: number) => Array.fromAsync(p.console.past({ boot }), textOf);
  p.console.begin('start 1');
  await p.say(`printf 'reboot: Power down %0200d\\n' 0`);
  await p.console.tail(0);
  await rename(p.log, `${p.log}.away`); // now it cannot be rotated
  p.console.begin('start 2');
  await p.console.tail(0);
  await rename(`${p.log}.away`, p.log);
  assert.deepEqual(await past(0), ['what this boot wrote could not be written']);
  assert.match((await past(-1)).at(-1) ?? '', /^reboot: Power down 0/);
  await p.say(`printf 'it boots\\n'`);
  const [start = '', gap = '', ...rest] = await past(0);
  assert.match(start, /: start 2$/);
  assert.match(gap, /bytes could not be written \(ENOENT\)$/);
  assert.deepEqual(rest, ['it boots']);
});

test('what was written since a time, to about a second; marks of time are not shown', async () => {
  await using p = await place();
  const vmm = p.vmm(`for i in 1 2 3 4 5 6 7 8; do echo "line $i"; sleep 0.5; done; echo end; exec sleep 60`);
  try {
    const follow = p.console.follow(AbortSignal.timeout(30_000), { tail: 0 });
    const times = new Map<string, number>();
    for await (const item of follow) {
      times.set(textOf(item), Date.now());
      if (textOf(item) === 'end') break;
    }
    assert.deepEqual([...times.keys()], [...Array.from({ length: 8 }, (_, i) => `line ${i + 1}`), 'end']);
    for (const [line, at] of times) {
      const since = await Array.fromAsync(p.console.past({ since_ms: at - 100 }), textOf);
      assert.ok(since.includes(line), `${line} is missing`);
      assert.ok((times.get(since[0] ?? '') ?? 0) > at - 2500, `${since[0]} is too old for ${line}`);
      assert.equal(since.at(-1), 'end');
    }
    assert.deepEqual(await Array.fromAsync(p.console.past({ since_ms: Date.now() + 60_000 })), []);
    assert.equal((await p.console.tail(4)).length, 4);
    const marks = (await readFile(p.log, 'latin1')).match(/\x1eT/g) ?? [];
    assert.ok(marks.length >= 3 && marks.length <= 6, `${marks.length} marks in 4 s`);
  } finally {
    vmm.kill('SIGKILL');
  }
});

test('what was rotated away is told as a gap, and two files bound the log', async () => {
  await using p = await place(8192);
  const past = (wanted: Wanted) => Array.fromAsync(p.console.past(wanted));
  const began = Date.now();
  p.console.begin('start 1');
  const flood = (from: number) =>
    p.say(`i=${from}; while [ $i -lt ${from + 100} ]; do echo "line $i of this console"; i=$((i+1)); done`);
  await flood(0);
  assert.ok((await past({ since_ms: began, boot: 0 })).every(item => item.type === 'line'));
  for (let round = 1; round < 9; round++) {
    await flood(100 * round);
    await p.console.tail(0);
  }
  for (const wanted of [{ since_ms: began - 5000 }, { boot: 0 }, { after_boot: 0 }, { since_ms: began, boot: 0 }]) {
    const items = await past(wanted);
    assert.equal(items[0]?.type, 'gap', JSON.stringify(wanted));
    assert.match(textOf(items[0] ?? { type: 'line', line: '' }), /rotated away/);
    assert.ok(items.slice(1).every(item => /^line \d+ of this console$/.test(textOf(item))));
    assert.equal(textOf(items.at(-1) ?? { type: 'line', line: '' }), 'line 899 of this console');
    const numbers = items.slice(1).map(item => Number(textOf(item).split(' ')[1]));
    assert.deepEqual(
      numbers,
      Array.from({ length: numbers.length }, (_, i) => 900 - numbers.length + i),
      'none missing',
    );
  }
  p.console.begin('start 2');
  for (let round = 9; round < 18; round++) await flood(100 * round);
  assert.deepEqual(await past({ boot: -1 }), [{ type: 'gap', detail: 'what this boot wrote was rotated away' }]);
  await assert.rejects(past({ boot: -2 }), /there were 2/);
  assert.deepEqual(await p.console.tail(1), ['line 1799 of this console'], 'a tail has no gap');
  for (const path of [p.log, `${p.log}.1`]) assert.ok((await stat(path)).size <= 8192 + 4096, path);
});

test('a view goes on over rotations, and nobody who goes away leaves it open', async () => {
  await using p = await place(4096);
  const fds = async () => (await readdir('/proc/self/fd')).length;
  await p.say(`i=0; while [ $i -lt 200 ]; do echo "line $i"; i=$((i+1)); done`);
  await p.console.tail(0);
  const before = await fds();
  const slow = p.console.past({ tail: 100 });
  const first = textOf((await slow.next()).value ?? { type: 'line', line: '' });
  await p.say(`i=0; while [ $i -lt 2000 ]; do echo "other $i"; i=$((i+1)); done`);
  const rest = await Array.fromAsync(slow, textOf);
  assert.deepEqual(
    [first, ...rest],
    Array.from({ length: 100 }, (_, i) => `line ${100 + i}`),
  );
  const gone = new AbortController();
  p.console.follow(gone.signal, { tail: 5 });
  gone.abort();
  for await (const _ of p.console.follow(AbortSignal.timeout(10_000), { tail: 5 })) break;
  await poll('closed descriptors', 5000, async () => (await fds()) <= before || undefined);
});

test('whatever bytes a guest writes: printable lines, all of them, and no line of ours but ours', async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  let state = seed;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % below;
  };
  const spice = [...'\u001eB1 1 --- x\n\u001eT9\n\u001eC4 4\n\u001b[2J\u009b\r\n\u0000\u202e'].map(c => Buffer.from(c));
  for (let round = 0; round < 5; round++) {
    await using p = await place(16 * 1024);
    p.console.begin('start');
    const pieces: Buffer[] = [];
    for (let i = 0; i < 2000; i++) {
      const byte = random(2) === 0 ? Buffer.from([random(256)]) : (spice[random(spice.length)] ?? Buffer.of());
      pieces.push(byte);
    }
    const file = `${p.log}.in`;
    await writeFile(file, Buffer.concat(pieces));
    const follow = p.console.follow(AbortSignal.timeout(20_000), { tail: 0 });
    await p.say(`cat ${file}; printf '\\nthe end\\n'`);
    const live = (await until(follow, lineIs('the end'))).map(textOf);
    const past = (await Array.fromAsync(p.console.past({ boot: 0 }), textOf)).slice(1);
    assert.deepEqual(past, live, `seed ${seed}`);
    for (const line of live)
      assert.doesNotMatch(line, /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202e]/, `seed ${seed}`);
    assert.equal(p.console.boot, 1);
    const size = Buffer.concat(pieces).reduce((n, byte) => n + (byte === 10 ? 1 : 0), 0);
    assert.equal(live.length, size + 2, `seed ${seed}`);
  }
});

test('something else in the place of the FIFO is refused', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-console-'));
  await writeFile(join(dir, 'console'), '');
  await assert.rejects(openConsole({ fifo: join(dir, 'console'), log: join(dir, 'log') }), /not a named pipe/);
  await rm(dir, { recursive: true });
});

test('lines are cut at 8 KiB, never within a character', () => {
  const lines: string[] = [];
  const cutter = new LineCutter(line => {
    assert.ok(line.length <= MAX_LINE);
    lines.push(line.toString('utf8'));
  });
  const text = `${'ä€😀'.repeat(5000)}\nshort\n\nrest`;
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at += 1000) cutter.feed(bytes.subarray(at, at + 1000));
  cutter.flush();
  assert.equal(lines.slice(0, -3).join(''), 'ä€😀'.repeat(5000));
  assert.deepEqual(lines.slice(-3), ['short', '', 'rest']);
});
