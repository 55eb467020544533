import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { type Console, openConsole, readConsole } from '../src/vmm/console.ts';
import type { ConsoleItem } from '../src/vmm/follower.ts';
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
    const items = await until(p.console.follow(AbortSignal.timeout(20_000), 100_000), lineIs('end'));
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
