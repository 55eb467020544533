/** The channel into a really booted VM, at its worst. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { bareMachine } from './kit/machine.ts';
import { cuts, stall, zeros } from './kit/stress.ts';
import { type World, world } from './kit/world.ts';

const MIB = 1024 * 1024;

const rssMib = async (pid: number): Promise<number> =>
  Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

test('50 cuts in the middle of a transfer: each is back within a second, no byte is out of its place', {
  timeout: 300_000,
}, async t => {
  await using m = await bareMachine();
  const result = await cuts(m.guest, m.cut, { times: 50, back_ms: 1000 });
  t.diagnostic(JSON.stringify(result));
});

test('sixteen streams stand still and a command answers; outputs are whole when they are read', {
  timeout: 300_000,
}, async t => {
  await using m = await bareMachine();
  // 32 MiB each: enough to fill every window and ring many times, and quick to read at the end
  const result = await stall(m.guest, { streams: 8, bytes: 32 * MIB, times: 20, limit_ms: 5000, grow_mib: 150 });
  t.diagnostic(JSON.stringify(result));
});

const exec = (w: World, argv: string[]) => execResult(w.client.exec.run({ vm: 'vm', argv }));

test('through the daemon: 8 unread outputs and 8 never-read uploads of 256 MiB', { timeout: 300_000 }, async t => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: 'vm', memory_mib: 512 });
  await w.client.vm.start({ vm: 'vm' });
  await exec(w, ['true']);
  const before = await rssMib(w.daemon().pid);
  const end = new AbortController();
  const outputs = [];
  const uploads: Promise<unknown>[] = [];
  for (let i = 0; i < 8; i++) {
    const argv = ['head', '-c', String(256 * MIB), '/dev/zero'];
    const output = w.client.exec.run({ vm: 'vm', argv }, { signal: end.signal });
    assert.equal((await output.next()).value?.type, 'started');
    outputs.push(output);
    const sleeper = w.client.exec.run({ vm: 'vm', argv: ['sleep', '600'], stdin: 'open' }, { signal: end.signal });
    const started = (await sleeper.next()).value;
    assert.ok(started?.type === 'started');
    const body = zeros(256 * MIB);
    const upload = w.client.exec.stdin({ vm: 'vm', exec: started.exec }, { body, signal: end.signal });
    uploads.push(
      upload.then(
        () => 'ended',
        () => 'broken',
      ),
    );
    outputs.push(sleeper);
  }
  await new Promise(resolve => setTimeout(resolve, 2000)); // until all windows are full
  const took: number[] = [];
  let most = 0;
  for (let i = 0; i < 20; i++) {
    const from = performance.now();
    assert.equal((await exec(w, ['true'])).exit_code, 0);
    took.push(performance.now() - from);
    most = Math.max(most, await rssMib(w.daemon().pid));
  }
  assert.equal(await Promise.race([...uploads, Promise.resolve('all stand still')]), 'all stand still');
  const grown = most - before;
  assert.ok(grown < 250, `the daemon grew by ${grown} MiB while 4 GiB wanted through it`);
  took.sort((a, b) => a - b);
  t.diagnostic(JSON.stringify({ true_ms_p50: took[10], true_ms_most: took[19], before_mib: before, most_mib: most }));
  end.abort();
  await Promise.all(uploads);
});

test('the daemon is killed in the middle of 256 MiB of output; the VM is adopted and answers', {
  timeout: 300_000,
}, async t => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: 'vm', memory_mib: 512 });
  const { pid } = await w.client.vm.start({ vm: 'vm' });
  const boot = (await exec(w, ['cat', '/proc/sys/kernel/random/boot_id'])).stdout.toString();
  let seen = 0;
  const broken = (async () => {
    for await (const message of w.client.exec.run({ vm: 'vm', argv: ['head', '-c', String(256 * MIB), '/dev/zero'] })) {
      if (message.type === 'stdout') seen += message.data.length;
      assert.notEqual(message.type, 'exit', 'it was killed before the end');
    }
  })().then(
    () => 'ended quietly',
    (error: unknown) => String(error),
  );
  await poll('the middle', 60_000, () => (seen > 16 * MIB ? true : undefined));
  await w.kill();
  assert.notEqual(await broken, 'ended quietly', 'the client is told');
  const from = performance.now();
  await w.start();
  const up = performance.now();
  assert.equal((await exec(w, ['cat', '/proc/sys/kernel/random/boot_id'])).stdout.toString(), boot, 'the same boot');
  t.diagnostic(
    `daemon up after ${Math.round(up - from)} ms, answer after ${Math.round(performance.now() - up)} ms more`,
  );
  const vm = await w.client.vm.get({ vm: 'vm' });
  assert.deepEqual([vm.state, vm.guest, vm.pid], ['running', 'ready', pid]);
});
