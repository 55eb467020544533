/** When the guest's clock is looked at, and when it is touched: by what a guest is asked, and by the real agent's code. */
import assert from 'node:assert/strict';
import type { IncomingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import { test } from 'node:test';
import { z } from 'zod';
import type { KeeperOptions } from '../src/guest/keeper.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { clockJumps } from '../src/lib/jump.ts';
import { type Rig, rig, ring, speaker } from './kit/rig.ts';

const HOUR_MS = 3_600_000;
const Step = z.object({ by_us: z.int() });

interface Machine {
  r: Rig;
  asked: string[];
  /** How far the guest's clock is ahead. */
  off_ms: number;
  /** What each answer takes. */
  slow_ms: number;
  cut: () => void;
}

/** A guest with a clock of its own; `answer` may answer in its place. */
const machine = async (
  answer: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => boolean = () => false,
): Promise<Machine & AsyncDisposable> => {
  const asked: string[] = [];
  const settle: KeeperOptions['settle'] = () => ({ clock_ms: Date.now() });
  const sockets = new Set<{ destroy(): void }>();
  const reply = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, body: string) => {
    const route = `${headers[':method']} ${headers[':path']}`;
    asked.push(route);
    if (answer(stream, headers)) return;
    if (route === 'POST /v1/clock') m.off_ms += Step.parse(JSON.parse(body)).by_us / 1000;
    const clock_us = Math.round((Date.now() + m.off_ms) * 1000);
    const status = route.endsWith('/v1/clock') ? 200 : 204;
    // what it says was so when the request came
    setTimeout(() => {
      if (stream.destroyed) return;
      stream.respond({ ':status': status });
      stream.end(status === 200 ? JSON.stringify({ clock_us }) : '');
    }, m.slow_ms);
  };
  const serve = speaker((stream, headers) => {
    let body = '';
    stream.on('data', chunk => {
      body += String(chunk);
    });
    stream.on('end', () => reply(stream, headers, body));
  });
  const r = await rig(
    socket => {
      sockets.add(socket);
      serve(socket);
    },
    { settle, ping_ms: 5000 },
  );
  const cut = () => {
    for (const socket of sockets) socket.destroy();
    sockets.clear();
  };
  const m: Machine = { r, asked, off_ms: 0, slow_ms: 0, cut };
  await ring(r);
  await r.guest.ready(AbortSignal.timeout(10_000));
  await looked(m, 1);
  return Object.assign(m, { [Symbol.asyncDispose]: () => r[Symbol.asyncDispose]() });
};

const times = ({ asked }: Machine, route: string): number => asked.filter(one => one === route).length;

const looked = (m: Machine, count: number) =>
  poll(`look ${count} at the clock`, 10_000, () => times(m, 'GET /v1/clock') >= count || undefined);

test('looked at on each connection, after a pause, and when this host slept; touched only if it is off', async () => {
  await using m = await machine();
  assert.equal(m.asked[0], 'POST /v1/settle');
  m.cut();
  await looked(m, 2);
  m.r.guest.hold()[Symbol.dispose]();
  await looked(m, 3);
  m.r.guest.doubtClock();
  await looked(m, 4);
  await sleep(300);
  assert.deepEqual([times(m, 'POST /v1/settle'), times(m, 'POST /v1/clock'), times(m, 'GET /v1/clock')], [1, 0, 4]);
  for (const [n, off_ms] of [-HOUR_MS, 70 * HOUR_MS, 900].entries()) {
    m.off_ms = off_ms;
    m.r.guest.hold()[Symbol.dispose]();
    await poll('the right time', 10_000, () => Math.abs(m.off_ms) < 200 || undefined);
    assert.equal(times(m, 'POST /v1/clock'), n + 1);
  }
  m.off_ms = 300;
  m.r.guest.doubtClock();
  await sleep(500);
  assert.equal(m.off_ms, 300, 'a small difference is left to whoever keeps the time in there');
});

test('what the round trip takes is no error of the clock', async () => {
  await using m = await machine();
  const before = times(m, 'GET /v1/clock');
  m.slow_ms = 1500;
  m.r.guest.doubtClock();
  await sleep(4000);
  assert.deepEqual(
    [times(m, 'GET /v1/clock') - before, times(m, 'POST /v1/clock')],
    [1, 0],
    'another look says no more',
  );
  m.off_ms = -HOUR_MS;
  m.r.guest.doubtClock();
  await poll('the right time', 20_000, () => Math.abs(m.off_ms) < 1000 || undefined);
  assert.ok(m.r.guest.state === 'ready');
  m.slow_ms = 3000;
  for (let n = 0; n < 2; n++) {
    const asked = times(m, 'GET /v1/clock');
    m.off_ms = -HOUR_MS;
    m.r.guest.doubtClock();
    await poll('the right time', 20_000, () => Math.abs(m.off_ms) < 2000 || undefined);
    await sleep(2500);
    assert.ok(times(m, 'GET /v1/clock') > asked);
  }
  assert.equal(m.r.opened(), 1, 'who is slow lives');
});

test('a paused guest is asked nothing', async () => {
  await using m = await machine();
  {
    using _held = m.r.guest.hold();
    const before = m.asked.length;
    m.r.guest.doubtClock();
    await sleep(300);
    assert.equal(m.asked.length, before);
  }
  await looked(m, 2);
});

test('an agent that is older, or talks nonsense, is used all the same', async () => {
  for (const body of [
    '{"code":"not_found","detail":"the agent does not know this request"}',
    '{"clock_us":"x"}',
    '!',
  ]) {
    const status = body.includes('not_found') ? 404 : 200;
    await using m = await machine((stream, headers) => {
      if (headers[':path'] !== '/v1/clock') return false;
      stream.respond({ ':status': status });
      stream.end(body);
      return true;
    });
    await m.r.guest.ping(AbortSignal.timeout(10_000));
    await sleep(300);
    assert.equal(m.r.opened(), 1, 'on one connection');
    assert.equal(times(m, 'POST /v1/clock'), 0);
    assert.equal(times(m, 'POST /v1/settle'), status === 404 ? 2 : 1, 'an older one is told the time');
  }
});

test('a sleep of this host, and a clock that is set, are seen once each', () => {
  let [clock, awake] = [1_000_000, 5000];
  const jumped = clockJumps(250, { clock: () => clock, awake: () => awake });
  const passes = (clock_ms: number, awake_ms: number): boolean => {
    clock += clock_ms;
    awake += awake_ms;
    return jumped();
  };
  assert.deepEqual(
    [passes(2000, 2000), passes(62_000, 2000), passes(2000, 2000), passes(-58_000, 2000), passes(2010, 2000)],
    [false, true, false, true, false],
  );
  const real = clockJumps(250);
  assert.equal(real(), false);
});
