/** The channel under stalled readers, cuts, silence and reboots; over sockets of this host. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { harness } from './kit/harness.ts';
import { cuts, drain, stall, start } from './kit/stress.ts';

const MIB = 1024 * 1024;

test('stalled outputs and uploads keep nothing else waiting, in bounded memory', async t => {
  await using h = await harness();
  const figures = await stall(h.guest, { streams: 8, bytes: 64 * MIB, times: 30, limit_ms: 5000, grow_mib: 150 });
  t.diagnostic(JSON.stringify(figures));
  assert.equal(h.proxy.opened, 1, 'all on one connection');
});

test('50 cuts in the middle of a transfer: back within a second, every byte in its place', async t => {
  await using h = await harness();
  const figures = await cuts(h.guest, () => h.proxy.cut(), { times: 50, back_ms: 1000 });
  t.diagnostic(JSON.stringify(figures));
  assert.ok(h.proxy.opened >= 51);
  assert.ok(!h.states.includes('unreachable'));
});

test('a consumer that stalls over cuts gets all, and the result', async () => {
  await using h = await harness();
  const stream = await start(h.guest, ['sh', '-c', 'head -c 3000000 /dev/zero; exit 3']);
  for (let n = 0; n < 5; n++) {
    await new Promise(resolve => setTimeout(resolve, 50));
    h.proxy.cut();
    await h.guest.ping(AbortSignal.timeout(5000));
  }
  let total = 0;
  for await (const piece of stream) total += 'gap' in piece ? Number.NaN : piece.data.length;
  assert.equal(total, 3_000_000, 'nothing is missing');
  assert.equal((await stream.result).exit_code, 3);
});

test('a cut while commands are being started runs each of them once', async () => {
  await using h = await harness();
  const file = `/tmp/nexus-once-${process.pid}`;
  const runs = Array.from({ length: 20 }, async () =>
    drain(await start(h.guest, ['sh', '-c', `echo x >> ${file}; sleep 0.05`])),
  );
  h.proxy.cut();
  await new Promise(resolve => setTimeout(resolve, 5));
  h.proxy.cut();
  assert.deepEqual(new Set(await Promise.all(runs)), new Set([0]));
  const counted = await start(h.guest, ['sh', '-c', `wc -l < ${file}; rm ${file}`]);
  let text = '';
  for await (const piece of counted) if ('data' in piece) text += piece.data.toString();
  assert.equal(text.trim(), '20');
});

test('a command whose input was cut off has no result', async () => {
  await using h = await harness();
  const endless = new Readable({
    read() {
      setTimeout(() => this.push(Buffer.alloc(1000)), 1);
    },
  });
  const stream = await start(h.guest, ['cat'], { stdin: 'open' }, endless);
  const reading = drain(stream);
  setTimeout(() => h.proxy.cut(), 100);
  await assert.rejects(reading, { code: 'guest', message: /^Cannot feed command .* after \d+ bytes were sent\.$/ });
  assert.equal(endless.destroyed, true);
  assert.equal(await drain(await start(h.guest, ['true'])), 0);
});

test('a guest that cannot be reached is said to be so, and comes back by itself', async () => {
  await using h = await harness();
  h.proxy.refuse = true;
  h.proxy.cut();
  await poll('unreachable', 10_000, () => h.guest.state === 'unreachable' || undefined);
  const asked = start(h.guest, ['true']);
  h.proxy.refuse = false;
  assert.equal(await drain(await asked), 0);
  assert.deepEqual(h.states, ['ready', 'unreachable', 'ready']);
});

test('a channel that falls silent is replaced', async () => {
  await using h = await harness({ ping_every_ms: 200, ping_ms: 300 });
  const stream = await start(h.guest, ['sh', '-c', 'sleep 0.5; echo here']);
  {
    using _paused = h.guest.hold();
    h.proxy.silence();
    await new Promise(resolve => setTimeout(resolve, 1500));
    assert.equal(h.proxy.opened, 1, 'a paused guest is left alone');
  }
  let text = '';
  for await (const piece of stream) if ('data' in piece) text += piece.data.toString();
  assert.equal(text, 'here\n');
  assert.equal(h.proxy.opened, 2);
  await h.guest.ready(AbortSignal.timeout(5000));
});

test('a connection lost while the guest is paused is replaced afterwards', async () => {
  await using h = await harness();
  {
    using _paused = h.guest.hold();
    h.proxy.cut();
    await new Promise(resolve => setTimeout(resolve, 200));
    assert.equal(h.proxy.opened, 1);
  }
  assert.equal(await drain(await start(h.guest, ['true'])), 0);
  assert.equal(h.proxy.opened, 2);
  assert.deepEqual(h.states, ['ready']);
});

test('112 streams at most: the others wait in order, can be aborted, and pings still pass', async () => {
  await using h = await harness();
  const limit = AbortSignal.timeout(60_000);
  const held = await Promise.all(
    Array.from({ length: 112 }, () => start(h.guest, ['sleep', '600'], {}, undefined, limit)),
  );
  let started = false;
  const next = start(h.guest, ['true'], {}, undefined, limit).then(stream => {
    started = true;
    return drain(stream);
  });
  const impatient = new AbortController();
  const aborted = start(h.guest, ['true'], {}, undefined, impatient.signal);
  impatient.abort(new Error('enough'));
  await assert.rejects(aborted, /enough/);
  assert.ok((await h.guest.ping(limit)) < 5000);
  assert.equal(started, false);
  for (const stream of held) await h.guest.signalExec(stream.id, 'KILL', limit);
  await Promise.all(held.map(drain));
  assert.equal(await next, 0);
});

test('closing the guest ends everything that waits', async () => {
  const h = await harness();
  const stream = await start(h.guest, ['sleep', '600']);
  const reading = assert.rejects(drain(stream), { code: 'guest' });
  h.proxy.refuse = true;
  h.proxy.cut();
  const calling = assert.rejects(h.guest.refresh(AbortSignal.timeout(60_000)), { code: 'guest' });
  await h[Symbol.asyncDispose]();
  await Promise.all([reading, calling]);
  await assert.rejects(h.guest.ready(AbortSignal.timeout(1000)), { code: 'guest' });
});
