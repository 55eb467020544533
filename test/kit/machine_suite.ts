/**
 * What every machine must do, whichever VMM runs it, real or a stand-in: one story on one machine, for a boot can take seconds,
 * and the end of one that is killed.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { poll, withDeadline } from '../../src/lib/deadline.ts';
import type { BareMachine } from './machine.ts';
import { checkSeq, cuts, drain, seq, start } from './stress.ts';

const limit = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);

const works = async (m: BareMachine): Promise<void> => {
  await m.guest.ready(limit());
  assert.equal(await drain(await start(m.guest, ['true'])), 0);
};

/** Stands still in the middle of a transfer and goes on: no byte comes meanwhile, none is lost. */
const pauses = async (m: BareMachine, t: TestContext): Promise<void> => {
  assert.equal(await m.machine.paused(), false);
  const lines = 2_000_000;
  let bytes = 0;
  const reading = checkSeq(await start(m.guest, seq(lines)), n => {
    bytes += n;
  });
  await poll('the first bytes', 30_000, () => (bytes > 500_000 ? true : undefined));
  const held = m.guest.hold();
  const asked = performance.now();
  await m.machine.pause();
  t.diagnostic(`paused after ${Math.round(performance.now() - asked)} ms`);
  assert.equal(await m.machine.paused(), true);
  await m.machine.pause(); // once more does no harm
  await sleep(500); // what was under way arrives
  const before = bytes;
  await sleep(500);
  assert.equal(bytes, before, 'bytes came from a paused machine');
  assert.ok(before < lines * 10, 'the transfer was over before the pause: this shows nothing');
  await m.machine.resume();
  assert.equal(await m.machine.paused(), false);
  held[Symbol.dispose]();
  const { bytes: all, gaps } = await reading;
  assert.deepEqual([all, gaps], [lines * 10, 0]);
};

const uses = async (m: BareMachine): Promise<void> => {
  const before = await m.machine.usage();
  assert.ok(before.cpu_ms >= 0 && before.memory_bytes > 1024 * 1024, JSON.stringify(before));
  const end = performance.now() + 20_000;
  for (let now = before; now.disk_write_bytes === null || now.cpu_ms <= before.cpu_ms; now = await m.machine.usage()) {
    assert.ok(performance.now() < end, `no more than ${JSON.stringify(now)}`);
    await drain(await start(m.guest, ['sh', '-c', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done']));
  }
};

const adopts = async (m: BareMachine): Promise<void> => {
  await m.adopt();
  await works(m);
  await m.machine.pause();
  await m.adopt();
  assert.equal(await m.machine.paused(), true);
  await m.machine.resume();
  await works(m);
};

const powersOff = async (m: BareMachine): Promise<void> => {
  const { machine } = m;
  await m.guest.power('poweroff', 2000, limit());
  const end = await withDeadline('the end of the guest', 60_000, machine.ended);
  assert.deepEqual(m.endings, ['poweroff by host']);
  assert.equal(end.guest_reset, true, JSON.stringify(end));
};

/** `make` gives a machine whose guest is ready. */
export const machineSuite = (name: string, make: () => Promise<BareMachine>): void => {
  test(`${name}: a machine works, is cut, paused, let go, adopted and powered off`, { timeout: 300_000 }, async t => {
    await using m = await make();
    await t.test('commands run, also on a second control connection', async () => {
      await works(m);
      const second = await m.machine.openControl(limit());
      await works(m);
      second.destroy();
      await works(m);
    });
    await t.test('a control connection that is cut in the middle of a transfer comes back', async s => {
      s.diagnostic(JSON.stringify(await cuts(m.guest, m.cut, { times: 5, back_ms: 10_000 })));
    });
    await t.test('the guest rings again when its egress connections are cut', async () => {
      const rung = m.bells();
      m.cutEgress();
      await poll('the bell', 30_000, () => (m.bells() > rung ? true : undefined));
      await works(m);
    });
    await t.test('it stands still and goes on', s => pauses(m, s));
    await t.test('it says what it uses', () => uses(m));
    await t.test('it lives on when it is let go, and is adopted, paused too', () => adopts(m));
    await t.test('it powers off, and that is told apart from a crash', () => powersOff(m));
  });
};

export const killedSuite = (name: string, make: () => Promise<BareMachine>): void => {
  test(`${name}: a machine that is killed is gone at once`, { timeout: 120_000 }, async () => {
    await using m = await make();
    const stream = await m.machine.openControl(limit());
    const closed = new Promise(resolve => stream.once('close', resolve));
    process.kill(m.machine.proc.pid, 'SIGKILL');
    const end = await withDeadline('the end of the VMM', 2000, m.machine.ended);
    assert.deepEqual([end.exit_code, end.signal, end.known, end.guest_reset], [null, 'SIGKILL', true, false]);
    await withDeadline('the end of the stream', 2000, closed);
  });
};
