/** The counting lock and the rate limit of lib. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { atMost } from '../src/lib/rate.ts';
import { Slots } from '../src/lib/slots.ts';

const never = new AbortController().signal;

test('slots are served in order; one that wants many is not overtaken; an aborted wait takes nothing', async () => {
  const slots = new Slots(3);
  const order: string[] = [];
  const first = await slots.take(2, never);
  const stop = new AbortController();
  const many = slots.take(3, never).then(taken => {
    order.push('many');
    return taken;
  });
  const aborted = slots.take(1, stop.signal);
  const few = slots.take(1, never).then(taken => {
    order.push('few');
    return taken;
  });
  stop.abort(new Error('enough'));
  await assert.rejects(aborted, /enough/);
  await sleep(1);
  assert.deepEqual(order, [], 'one is free, but who wants three came first');
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  (await many)[Symbol.dispose]();
  (await few)[Symbol.dispose]();
  assert.deepEqual(order, ['many', 'few']);
  assert.equal(slots.free, 3);
  await assert.rejects(slots.take(4, never), RangeError);
});

test('never more slots are taken than there are, and all come back', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.record({ want: fc.integer({ min: 1, max: 5 }), abort: fc.boolean() })), async jobs => {
      const slots = new Slots(5);
      let taken = 0;
      const runs = jobs.map(async ({ want, abort }) => {
        const stop = new AbortController();
        const waiting = slots.take(want, stop.signal);
        if (abort) stop.abort();
        const place = await waiting.catch(() => undefined);
        if (place === undefined) return;
        taken += want;
        assert.ok(taken <= 5);
        await Promise.resolve();
        taken -= want;
        place[Symbol.dispose]();
      });
      await Promise.all(runs);
      assert.equal(slots.free, 5);
    }),
  );
});

test('at most so many in a window; the swallowed ones are counted', async () => {
  const may = atMost(2, 30);
  const said = Array.from({ length: 5 }, () => may());
  assert.deepEqual(
    said.map(s => s.pass),
    [true, true, false, false, false],
  );
  await sleep(60);
  assert.deepEqual(may(), { pass: true, swallowed: 3 });
});
