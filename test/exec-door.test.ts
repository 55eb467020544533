/** Commands through the door: who listens, who leaves, and what becomes of what runs. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import type { ExecMessage } from '../src/api/exec.ts';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { descriptors } from './kit/audit.ts';
import { boxed, rejects } from './kit/behave.ts';

const { w } = await boxed();

type Started = Extract<ExecMessage, { type: 'started' }>;

/** The stand-in's guest runs commands on this host: a marked one can be looked for. */
const alive = async (mark: string): Promise<boolean> => {
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const args = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '');
    if (args.split('\0').includes(mark)) return true;
  }
  return false;
};

const begin = async (mark: string, on_disconnect: 'keep' | 'kill'): Promise<{ exec: string; leave(): void }> => {
  const abort = new AbortController();
  const argv = ['/bin/sh', '-c', 'sleep 600; true', mark];
  const stream = w.client.exec.run({ vm: 'box', argv, on_disconnect }, { signal: abort.signal });
  const first = (await stream.next()).value;
  assert.ok(first?.type === 'started');
  stream.next().catch(() => {});
  return { exec: first.exec, leave: () => abort.abort(new Error('left')) };
};

test('a client that goes away: the command goes on, or ends where that was asked for', {
  timeout: 60_000,
}, async () => {
  const marks = [`keep-${process.pid}`, `kill-${process.pid}`, `stays-${process.pid}`];
  const [keep, kill, stays] = [
    await begin(marks[0] ?? '', 'keep'),
    await begin(marks[1] ?? '', 'kill'),
    await begin(marks[2] ?? '', 'kill'),
  ];
  keep.leave();
  kill.leave();
  await poll('the end of the command', 30_000, async () => !(await alive(marks[1] ?? '')) || undefined, {
    every_ms: 200,
  });
  assert.ok(await alive(marks[0] ?? ''), 'nobody asked for its end');
  assert.ok(await alive(marks[2] ?? ''), 'its client is there');
  for (const { exec } of [keep, stays]) await w.client.exec.signal({ vm: 'box', exec, signal: 'KILL' });
  for (const mark of marks) {
    await poll('the end of the command', 5000, async () => !(await alive(mark)) || undefined, { every_ms: 50 });
  }
  await rejects(w.client.exec.signal({ vm: 'box', exec: keep.exec, signal: 'TERM' }), 'not_found');
  stays.leave();
});

test('standard input by another request; a signal ends the command, and its exit says so', async () => {
  const stream = w.client.exec.run({ vm: 'box', argv: ['cat'], stdin: 'open' });
  const { exec } = (await stream.next()).value as Started;
  const text = 'x'.repeat(300_000);
  const fed = w.client.exec.stdin({ vm: 'box', exec }, { body: Readable.from([Buffer.from(text)]) });
  const result = await execResult(stream);
  assert.deepEqual([result.stdout.toString() === text, result.exit_code], [true, 0]);
  assert.deepEqual(await fed, { bytes: 300_000 });
  const sleeper = w.client.exec.run({ vm: 'box', argv: ['sleep', '600'] });
  const second = (await sleeper.next()).value as Started;
  await w.client.exec.signal({ vm: 'box', exec: second.exec, signal: 'TERM' });
  const ended = await execResult(sleeper);
  assert.deepEqual([ended.exit_code, ended.signal], [null, 'TERM']);
  const late = await execResult(w.client.exec.run({ vm: 'box', argv: ['sleep', '600'], timeout_ms: 50 }));
  assert.deepEqual([late.timed_out, late.exit_code], [true, null]);
  const missing = await rejects(w.client.exec.run({ vm: 'box', argv: ['/no/such'] }).next(), 'not_found');
  assert.equal(missing.reason, 'no_program');
});

test('output comes as it is written, whole and in order, beside clients that never read', {
  timeout: 60_000,
}, async () => {
  const script = 'for i in 1 2 3 4; do echo $i; sleep 0.3; done';
  const times: number[] = [];
  for await (const m of w.client.exec.run({ vm: 'box', argv: ['sh', '-c', script] })) {
    if (m.type === 'stdout') times.push(performance.now());
  }
  assert.equal(times.length, 4);
  assert.ok((times[3] ?? 0) - (times[0] ?? 0) > 600, 'not held back to the end');
  const end = new AbortController();
  const idle = Array.from({ length: 6 }, () =>
    w.client.exec.run({ vm: 'box', argv: ['cat', '/dev/zero'], on_disconnect: 'kill' }, { signal: end.signal }),
  );
  for (const stream of idle) assert.equal((await stream.next()).value?.type, 'started');
  const numbers = await execResult(w.client.exec.run({ vm: 'box', argv: ['seq', '1', '400000'] }));
  const lines = numbers.stdout.toString().trimEnd().split('\n');
  assert.equal(lines.length, 400_000);
  assert.ok(lines.every((line, i) => line === String(i + 1)));
  end.abort(new Error('left'));
});

test('commands leave nothing in the daemon: descriptors, streams, warnings', { timeout: 60_000 }, async () => {
  const round = () =>
    Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const abort = new AbortController();
        const stream = w.client.exec.run({ vm: 'box', argv: ['echo', String(i)] }, { signal: abort.signal });
        if (i % 2 === 0) assert.equal((await execResult(stream)).stdout.toString(), `${i}\n`);
        else {
          await stream.next();
          abort.abort(new Error('left'));
          await stream.next().catch(() => {});
        }
      }),
    );
  await round();
  await sleep(200);
  const before = await descriptors(w);
  for (let i = 0; i < 10; i++) await round();
  await poll('the descriptors', 5000, async () => (await descriptors(w)) <= before + 5 || undefined);
  assert.ok(!/Warning|"level":50/.test(await w.log()), await w.log());
});
