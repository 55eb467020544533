/**
 * What every machine must do, whichever VMM runs it, real or a stand-in: one story on one machine, for a boot can take seconds,
 * and the end of one that is killed.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { poll, withDeadline } from '../../src/lib/deadline.ts';
import type { BareMachine } from './machine.ts';
import { checkSeq, cuts, drain, ENDLESS, start } from './stress.ts';

const limit = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);

const works = async (m: BareMachine): Promise<void> => {
  await m.guest.ready(limit());
  assert.equal(await drain(await start(m.guest, ['true'])), 0);
};

/** Stands still in the middle of a transfer and goes on: no byte comes meanwhile, none is lost. */
const pauses = async (m: BareMachine, t: TestContext): Promise<void> => {
  assert.equal(await m.machine.paused(), false);
  let bytes = 0;
  const come = (n: number) => poll('bytes', 60_000, () => (bytes > n ? true : undefined));
  const torrent = await start(m.guest, ENDLESS, {}, undefined, limit(240_000));
  const reading = checkSeq(torrent, n => {
    bytes += n;
  });
  reading.catch(() => {}); // awaited below
  await come(100_000);
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
  await m.machine.resume();
  assert.equal(await m.machine.paused(), false);
  held[Symbol.dispose]();
  await come(before + 100_000);
  await m.guest.signalExec(torrent.id, 'TERM', limit());
  assert.equal((await reading).gaps, 0);
  assert.equal((await torrent.result).signal, 'TERM');
};

const uses = async (m: BareMachine): Promise<void> => {
  const before = await m.machine.usage();
  assert.ok(before.cpu_ms >= 0 && before.memory_bytes > 1024 * 1024, JSON.stringify(before));
  const end = performance.now() + 60_000;
  for (let now = before; now.disk_write_bytes === null || now.cpu_ms <= before.cpu_ms; now = await m.machine.usage()) {
    assert.ok(performance.now() < end, `no more than ${JSON.stringify(now)}`);
    await drain(await start(m.guest, ['sh', '-c', 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done']));
  }
};

const MIB = 1024 * 1024;
/** A guest reads some MiB from its root before it rings. */
export const SLOW = { disk_rate_bytes: 2 * MIB, disk_rate_ops: 1000 };

const isSlow = async (m: BareMachine, t: TestContext): Promise<void> => {
  const script = 'dd if=/dev/zero of=/slow bs=64k count=160 conv=fsync 2>/dev/null';
  const began = performance.now();
  assert.equal(await drain(await start(m.guest, ['sh', '-c', script])), 0);
  const ms = performance.now() - began;
  t.diagnostic(`10 MiB in ${Math.round(ms)} ms`);
  // a bucket of one second may be full at the start
  assert.ok(ms > 3800, `10 MiB took ${Math.round(ms)} ms at 2 MiB a second`);
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

export interface SuiteOptions {
  /** How often the control connection is cut. */
  cuts?: number;
  /** The machine has the limits of SLOW. */
  slow?: boolean;
}

/** `make` gives a machine whose guest is ready. */
export const machineSuite = (name: string, make: () => Promise<BareMachine>, options: SuiteOptions = {}): void => {
  const { cuts: times = 5, slow = false } = options;
  test(`${name}: a machine works, is cut, paused, let go, adopted and powered off`, { timeout: 400_000 }, async t => {
    await using m = await make();
    await t.test('commands run, also on a second control connection', async () => {
      await works(m);
      const second = await m.machine.openControl(limit());
      await works(m);
      second.destroy();
      await works(m);
    });
    await t.test('a control connection that is cut in the middle of a transfer comes back', async s => {
      s.diagnostic(JSON.stringify(await cuts(m.guest, m.cut, { times, back_ms: 10_000, between: 100_000 })));
    });
    await t.test('the guest rings again when its egress connections are cut', async () => {
      const rung = m.bells();
      m.cutEgress();
      await poll('the bell', 30_000, () => (m.bells() > rung ? true : undefined));
      await works(m);
    });
    await t.test('it stands still and goes on', s => pauses(m, s));
    await t.test('it says what it uses', () => uses(m));
    if (slow) await t.test('its disk is as slow as it is told to be', s => isSlow(m, s));
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
