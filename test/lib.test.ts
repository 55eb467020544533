import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import fc from 'fast-check';
import { cgroupUsage } from '../src/lib/cgroup.ts';
import { DeadlineError, poll, raced, withDeadline } from '../src/lib/deadline.ts';
import { exists, removeTree, writeAtomic } from '../src/lib/files.ts';
import { Joined } from '../src/lib/joined.ts';
import { Locks } from '../src/lib/lock.ts';
import { bootId, isAlive, procRef, RunError, run, runAny, signalProc } from '../src/lib/proc.ts';
import { formatBytes, formatMs, parseBytes, parseMs } from '../src/lib/size.ts';
import { plain } from '../src/lib/text.ts';
import { Undo } from '../src/lib/undo.ts';
import { Uses } from '../src/lib/uses.ts';

test('what a group of processes has used: memory without the cache that nobody uses, or null where it is not counted', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-cgroup-'));
  try {
    assert.equal(await cgroupUsage(dir), undefined);
    await writeFile(join(dir, 'cpu.stat'), 'usage_usec 1500500\nuser_usec 1\nsystem_usec 2\n');
    assert.deepEqual(await cgroupUsage(dir), { cpu_ms: 1500.5, memory_bytes: null });
    await writeFile(join(dir, 'memory.current'), '10000\n');
    await writeFile(join(dir, 'memory.stat'), 'anon 6000\ninactive_file 1000\nactive_file 10\n');
    assert.deepEqual(await cgroupUsage(dir), { cpu_ms: 1500.5, memory_bytes: 9000 });
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('sizes and durations are read as people write them', () => {
  assert.equal(parseBytes('8G'), 8 * 1024 ** 3);
  assert.equal(parseBytes('512M'), 512 * 1024 ** 2);
  assert.equal(parseBytes('1.5GiB'), 1.5 * 1024 ** 3);
  assert.equal(parseBytes('4096'), 4096);
  for (const bad of ['', '8X', '-1', 'G', '8 8', '1e3', '99999999999T']) assert.equal(parseBytes(bad), undefined, bad);
  assert.equal(parseMs('90s'), 90_000);
  assert.equal(parseMs('1h30m'), 5_400_000);
  assert.equal(parseMs('250ms'), 250);
  assert.equal(parseMs('2'), 2000);
  for (const bad of ['', 's', '10x', '1s2', '-1s']) assert.equal(parseMs(bad), undefined, bad);
  assert.equal(formatBytes(8 * 1024 ** 3), '8 GiB');
  assert.equal(formatBytes(1536), '1.5 KiB');
  assert.equal(formatMs(45), '45 ms');
  assert.equal(formatMs(75_000), '1m 15s');
});

test('what is left of hostile text cannot steer a terminal', () => {
  assert.equal(plain('a\u001b[31mred\u001b[0m\tb'), 'ared\tb');
  assert.equal(plain('\u001b]0;title\u0007x\u001bcy\u009b2Jz'), 'xy2Jz');
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), s => {
      for (const c of plain(s)) {
        const code = c.codePointAt(0) ?? 0;
        assert.ok(code === 9 || (code >= 32 && !(code >= 127 && code < 160)), `U+${code.toString(16)}`);
      }
    }),
  );
});

test('a deadline ends a wait, a signal ends it earlier', async () => {
  const never = new Promise<void>(() => {});
  await assert.rejects(withDeadline('it', 20, never), DeadlineError);
  await assert.rejects(withDeadline('it', 10_000, never, AbortSignal.abort(new Error('gone'))), /gone/);
  await assert.rejects(raced(never, AbortSignal.timeout(10)), /timeout/i);
  await assert.rejects(
    poll('it', 30, () => undefined),
    DeadlineError,
  );
  let n = 0;
  assert.equal(await poll('it', 1000, () => (++n === 3 ? n : undefined), { every_ms: 1 }), 3);
});

test('a lock has one holder; a preempter aborts it and waits for its release', async () => {
  const locks = new Locks();
  const signal = AbortSignal.timeout(5000);
  const held = locks.tryTake('a', 'start');
  assert.ok(held);
  assert.equal(locks.tryTake('a', 'other'), undefined);
  assert.deepEqual([locks.holder('a'), locks.size], ['start', 1]);
  const order: string[] = [];
  const first = locks.take('a', 'stop', { signal, preempt: () => new Error('stop it') }).then(async h => {
    order.push('stop');
    assert.equal(locks.holder('a'), 'stop');
    await h[Symbol.asyncDispose]();
  });
  const second = locks.take('a', 'delete', { signal }).then(async h => {
    order.push('delete');
    assert.ok(!h.signal.aborted);
    await h[Symbol.asyncDispose]();
  });
  await new Promise(resolve => setTimeout(resolve, 5));
  assert.ok(held.signal.aborted);
  assert.match(String(held.signal.reason), /stop it/);
  assert.equal(locks.tryTake('a', 'other'), undefined, 'nobody overtakes who waits');
  await held[Symbol.asyncDispose]();
  await held[Symbol.asyncDispose]();
  await Promise.all([first, second]);
  assert.deepEqual(order, ['stop', 'delete']);
  assert.deepEqual([locks.holder('a'), locks.size], [undefined, 0]);
  assert.ok(locks.tryTake('a', 'again'));
});

test('a lock: who waits patiently is preempted by who waits behind; a wait can be given up', async () => {
  const locks = new Locks();
  const held = locks.tryTake('a', 'stop');
  assert.ok(held);
  const signal = AbortSignal.timeout(5000);
  const patient = locks.take('a', 'stop', { signal, preempt: h => (h === 'stop' ? undefined : new Error('no')) });
  assert.ok(!held.signal.aborted, 'a patient one aborts nobody of that name');
  const giveUp = new AbortController();
  const given = locks.take('a', 'attach', { signal: giveUp.signal });
  const hard = locks.take('a', 'delete', { signal, preempt: () => new Error('delete') });
  assert.ok(held.signal.aborted);
  giveUp.abort(new Error('given up'));
  await assert.rejects(given, /given up/);
  await held[Symbol.asyncDispose]();
  const second = await patient;
  assert.ok(second.signal.aborted, 'it has the lock, and is asked for it at once');
  await second[Symbol.asyncDispose]();
  const third = await hard;
  assert.equal(locks.holder('a'), 'delete');
  locks.abortAll(new Error('all'));
  assert.match(String(third.signal.reason), /all/);
  await third[Symbol.asyncDispose]();
  assert.equal(locks.size, 0);
  await assert.rejects(locks.take('a', 'late', { signal: giveUp.signal }), /given up/);
  assert.equal(locks.size, 0);
});

test('what is used cannot be taken, what is taken cannot be used', () => {
  const uses = new Uses();
  const one = uses.use('k');
  const two = uses.use('k');
  assert.ok(one && two);
  assert.equal(uses.take('k'), undefined);
  one[Symbol.dispose]();
  one[Symbol.dispose]();
  assert.equal(uses.take('k'), undefined, 'a second dispose gives nothing back');
  two[Symbol.dispose]();
  const taken = uses.take('k');
  assert.ok(taken);
  assert.deepEqual([uses.use('k'), uses.take('k')], [undefined, undefined]);
  taken[Symbol.dispose]();
  assert.ok(uses.use('k'));
});

test('work that is wanted twice at once is done once, also when it fails', async () => {
  const joined = new Joined<number>();
  let n = 0;
  const work = async () => {
    await new Promise(resolve => setTimeout(resolve, 5));
    if (++n === 2) throw new Error('twice');
    return n;
  };
  assert.deepEqual(await Promise.all([joined.run('a', work), joined.run('a', work)]), [1, 1]);
  const failed = await Promise.allSettled([joined.run('a', work), joined.run('a', work)]);
  assert.deepEqual(
    failed.map(r => r.status),
    ['rejected', 'rejected'],
  );
  assert.equal(await joined.run('a', work), 3);
});

test('an undo stack unwinds in reverse, past steps that throw, and not after commit', async () => {
  const undo = new Undo();
  const done: string[] = [];
  undo.push('a', () => void done.push('a'));
  undo.push('b', () => {
    throw new Error('b');
  });
  undo.push('c', async () => void done.push('c'));
  const errors: string[] = [];
  await undo.unwind(name => errors.push(name));
  assert.deepEqual([done, errors], [['c', 'a'], ['b']]);
  undo.push('d', () => void done.push('d'));
  undo.commit();
  await undo.unwind(() => {});
  assert.deepEqual(done, ['c', 'a']);
});

test('trees are removed inside their root only', async () => {
  const root = await mkdtemp(join(tmpdir(), 'nx-files-'));
  const outside = await mkdtemp(join(tmpdir(), 'nx-files-'));
  try {
    await mkdir(join(root, 'a/b'), { recursive: true });
    await writeFile(join(outside, 'keep'), 'x');
    await symlink(outside, join(root, 'link'));
    for (const bad of [root, outside, join(root, '..'), join(root, 'a/../..'), join(root, 'link/keep')]) {
      await assert.rejects(removeTree(root, bad), /will not remove/, bad);
    }
    await removeTree(root, join(root, 'link')); // the link goes, not what it points to
    assert.ok(await exists(join(outside, 'keep')));
    await removeTree(root, join(root, 'a'));
    assert.equal(await exists(join(root, 'a')), false);
    await removeTree(root, join(root, 'not/there'));
    await writeAtomic(join(root, 'f'), 'one');
    await writeAtomic(join(root, 'f'), 'two');
    assert.equal(await readFile(join(root, 'f'), 'utf8'), 'two');
  } finally {
    await rm(root, { recursive: true });
    await rm(outside, { recursive: true });
  }
});

test('a child is run to its end, and ended with its group when it is late or aborted', async () => {
  const lines: string[] = [];
  const ok = await run(['sh', '-c', 'echo out; echo err >&2; cat'], {
    input: Buffer.from('in\n'),
    onLine: (line, channel) => lines.push(`${channel} ${line}`),
  });
  assert.deepEqual([ok.stdout, ok.stderr], ['out\nin\n', 'err\n']);
  assert.deepEqual(lines.sort(), ['stderr err', 'stdout in', 'stdout out']);
  assert.equal((await runAny(['sh', '-c', 'exit 3'])).code, 3);
  assert.equal((await runAny(['sh', '-c', 'kill -9 $$'])).signal, 'SIGKILL');
  await assert.rejects(run(['sh', '-c', 'echo why >&2; exit 1']), /exit code 1: why/);
  await assert.rejects(
    run(['no-such-program-here']),
    (e: unknown) => e instanceof RunError && e.errno === 'ENOENT' && /not installed/.test(e.message),
  );
  const pidFile = join(tmpdir(), `nx-pid-${process.pid}`);
  await assert.rejects(run(['sh', '-c', `sleep 100 & echo $! > ${pidFile}; wait`], { timeout_ms: 300 }), /longer than/);
  const grandchild = Number(await readFile(pidFile, 'utf8'));
  await rm(pidFile);
  await poll('its end', 3000, async () => {
    const ref = await procRef(grandchild);
    return ref === undefined || !(await isAlive(ref)) ? true : undefined;
  });
  await assert.rejects(run(['sleep', '100'], { signal: AbortSignal.timeout(50) }), /timeout/i);
});

test('a process is told from a later one with its pid', async () => {
  const me = await procRef(process.pid);
  assert.ok(me);
  assert.ok(await isAlive(me));
  assert.equal(await isAlive({ ...me, start_ticks: me.start_ticks + 1 }), false);
  assert.equal(await isAlive({ ...me, boot_id: 'another boot' }), false);
  assert.equal(await signalProc({ ...me, start_ticks: 1 }, 'SIGKILL'), false, 'and we are still here');
  assert.equal(await signalProc({ pid: 1, start_ticks: 0, boot_id: bootId() }, 'SIGTERM'), false);
});
