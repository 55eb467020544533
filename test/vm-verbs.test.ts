/** Pause, resume, restart and wait through the door, with a VMM that behaves as it is told. */
import assert from 'node:assert/strict';
import process from 'node:process';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { procStat } from '../src/lib/proc.ts';
import { killVmm, nothingLeft, noVmm, rejects, stage, staged, until } from './kit/behave.ts';

const s = await staged();
const { w, create, echo, ways, clear } = s;

test('paused: no command, no second pause; resumed: the same process, the same guest', async () => {
  const { id } = await create('still');
  await rejects(w.client.vm.pause({ vm: id }), 'bad_state', /Cannot pause VM 'still': it was never started/);
  const { pid } = await w.client.vm.start({ vm: id });
  await rejects(w.client.vm.resume({ vm: id }), 'bad_state', /Cannot resume VM 'still': it is running/);
  const paused = await w.client.vm.pause({ vm: id });
  assert.deepEqual([paused.state, paused.pid, paused.guest], ['paused', pid, 'ready']);
  const fault = await rejects(w.client.exec.run({ vm: id, argv: ['true'] }).next(), 'bad_state', /it is paused/);
  assert.equal(fault.hint, 'nexusctl vm resume still');
  await rejects(w.client.vm.pause({ vm: id }), 'bad_state', /it is paused/);
  const start = await rejects(w.client.vm.start({ vm: id }), 'bad_state', /it is paused/);
  assert.equal(start.hint, 'nexusctl vm resume still');
  const resumed = await w.client.vm.resume({ vm: id });
  assert.deepEqual([resumed.state, resumed.pid, resumed.guest], ['running', pid, 'ready']);
  assert.equal(await echo(id), 'here\n');
  // by the clock of the stand-in's machine that took a minute
  const put = /its clock was off by -(?:59|60)\d{3} ms and was put right/;
  if (process.env.NEXUS_TEST_STANDIN !== 'firecracker')
    await poll('the right time', 30_000, async () => put.test(await w.log()) || undefined);
  assert.deepEqual(await ways(id), ['created', 'starting', 'running', 'paused', 'running']);
  await w.client.vm.pause({ vm: id });
  assert.ok(await killVmm(w, id));
  await until(w, id, 'crashed', 1500);
  await clear();
});

test('a paused VM is stopped cleanly, by force, and deleted', async () => {
  const { id } = await create('still');
  for (const force of [false, true]) {
    await w.client.vm.start({ vm: id });
    await w.client.vm.pause({ vm: id });
    const { last_exit } = await w.client.vm.stop({ vm: id, force });
    assert.equal(last_exit?.reason, force ? 'It was stopped by force.' : 'The guest shut down.');
    await noVmm(w);
  }
  await w.client.vm.start({ vm: id });
  await w.client.vm.pause({ vm: id });
  await clear();
});

test('a pause that the VMM refuses: the VM goes on', async () => {
  const { id } = await create('moody');
  await s.behave({ REFUSE: 'stop' });
  await w.client.vm.start({ vm: id });
  await rejects(w.client.vm.pause({ vm: id }), 'vmm', /Cannot pause VM 'moody'.*told to refuse/);
  assert.equal((await w.client.vm.get({ vm: id })).state, 'running');
  assert.equal(await echo(id), 'here\n');
  await clear();
});

test('killed while a VM is paused: the next daemon says so, and resumes it', async () => {
  const { id } = await create('still');
  const { pid } = await w.client.vm.start({ vm: id });
  await w.client.vm.pause({ vm: id });
  await w.kill();
  await w.start();
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.pid], ['paused', pid]);
  await rejects(w.client.exec.run({ vm: id, argv: ['true'] }).next(), 'bad_state', /it is paused/);
  await w.client.vm.resume({ vm: id });
  assert.equal((await w.client.vm.wait({ vm: id })).guest, 'ready');
  assert.equal(await echo(id), 'here\n');
  await w.client.vm.pause({ vm: id });
  await w.kill();
  await w.start();
  const stopped = await w.client.vm.stop({ vm: id });
  assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
  await clear();
});

test('a VMM that somebody stops by a signal is paused, while the daemon looks and while it does not', async () => {
  const { id } = await create('outside');
  const { pid } = await w.client.vm.start({ vm: id });
  process.kill(pid ?? 0, 'SIGSTOP');
  await until(w, id, 'paused');
  process.kill(pid ?? 0, 'SIGCONT');
  await until(w, id, 'running');
  assert.equal(await echo(id), 'here\n');
  await w.kill();
  process.kill(pid ?? 0, 'SIGSTOP');
  await w.start();
  assert.equal((await w.client.vm.get({ vm: id })).state, 'paused');
  assert.equal((await w.client.vm.resume({ vm: id })).state, 'running');
  assert.notEqual((await procStat(pid ?? 0))?.state, 'T');
  await w.client.vm.wait({ vm: id });
  assert.equal(await echo(id), 'here\n');
  const entry = (await w.client.vm.history({ vm: id })).find(h => h.to === 'paused');
  assert.deepEqual([entry?.why, entry?.actor], ['its VMM was found standing still', 'daemon']);
  await clear();
});

test('a VMM that is stopped again before the daemon looks again is paused all the same', async () => {
  const { id } = await create('twice');
  const { pid } = await w.client.vm.start({ vm: id });
  process.kill(pid ?? 0, 'SIGSTOP');
  await until(w, id, 'paused');
  await w.client.vm.resume({ vm: id });
  process.kill(pid ?? 0, 'SIGSTOP');
  await until(w, id, 'paused');
  assert.equal((await w.client.vm.resume({ vm: id })).state, 'running');
  await w.client.vm.wait({ vm: id });
  assert.equal(await echo(id), 'here\n');
  await clear();
});

test('restart: one process after the other, and the history says how; what does not run is just started', async () => {
  const { id } = await create('again');
  const first = await w.client.vm.restart({ vm: id });
  assert.deepEqual([first.state, first.guest, first.restart_at_ms], ['running', 'ready', null]);
  const second = await w.client.vm.restart({ vm: id });
  assert.deepEqual([second.state, second.guest, second.restart_at_ms], ['running', 'ready', null]);
  assert.notEqual(second.pid, first.pid);
  assert.equal(second.last_exit?.reason, 'The guest shut down.');
  await w.client.vm.pause({ vm: id });
  const third = await w.client.vm.restart({ vm: id, force: true, wait: 'running' });
  assert.equal(third.last_exit?.reason, 'It was stopped by force.');
  assert.ok(await killVmm(w, id));
  await until(w, id, 'crashed');
  const none = await w.client.vm.restart({ vm: id, wait: 'none' });
  assert.ok(['starting', 'running'].includes(none.state), none.state);
  await w.client.vm.wait({ vm: id });
  const start = ['starting', 'running'];
  const stop = ['stopping', 'stopped'];
  const all = ['created', ...start, ...stop, ...start, 'paused', ...stop, ...start, 'crashed', ...start];
  assert.deepEqual(await ways(id), all);
  const whys = (await w.client.vm.history({ vm: id })).filter(h => h.to === 'stopping').map(h => h.why);
  assert.deepEqual(whys, ['restart by force was asked for', 'restart was asked for']);
  await clear();
});

test('a restart that cannot come about stops nothing; one whose start fails says so', async () => {
  const { id } = await create('stays');
  const { pid } = await w.client.vm.start({ vm: id });
  await w.client.vm.update({ vm: id, vmm: 'firecracker' });
  const able = await w.client.vm.restart({ vm: id }).catch((e: unknown) => e);
  if (able instanceof Fault) {
    assert.ok(['host', 'unsupported'].includes(able.code), String(able));
    const vm = await w.client.vm.get({ vm: id });
    assert.deepEqual([vm.state, vm.pid], ['running', pid]);
  }
  await w.client.vm.update({ vm: id, vmm: 'qemu' });
  await s.behave({ DIE: 3 });
  await rejects(w.client.vm.restart({ vm: id }), 'vmm', /exit code 3/);
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.restart_at_ms], ['failed', null]);
  await clear();
});

test('busy names who is at work; stop and delete end a restart, a stop that comes late calls it off', async () => {
  const { id } = await create('held');
  await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
  await w.client.vm.start({ vm: id, wait: 'running' });
  const restart = rejects(w.client.vm.restart({ vm: id, timeout_ms: 20_000 }), 'canceled', /ended by vm\.stop/);
  await until(w, id, 'stopping');
  for (const verb of ['start', 'restart', 'pause', 'resume'] as const) {
    await rejects(
      w.client.vm[verb]({ vm: id }),
      'busy',
      new RegExp(`Cannot ${verb} VM 'held': vm\\.restart is at work`),
    );
  }
  const stopped = await w.client.vm.stop({ vm: id, force: true });
  assert.deepEqual([stopped.state, stopped.restart_at_ms], ['stopped', null]);
  await restart;
  await s.behave({ HANG: 1 });
  const half = rejects(w.client.vm.restart({ vm: id }), 'canceled', /ended by vm\.delete/);
  await until(w, id, 'starting');
  await w.client.vm.delete({ vm: id });
  await half;
  await clear();
});

test('killed in the middle of a restart: the next daemon finishes it', async () => {
  const { id } = await create('cut');
  await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
  await w.client.vm.start({ vm: id, wait: 'running' });
  await s.behave();
  const restart = w.client.vm.restart({ vm: id, timeout_ms: 20_000 }).catch((e: unknown) => e);
  await until(w, id, 'stopping');
  await w.kill();
  assert.ok((await restart) instanceof Error);
  assert.ok(await killVmm(w, id));
  await w.start();
  const vm = await w.client.vm.wait({ vm: id });
  assert.deepEqual([vm.state, vm.restart_at_ms], ['running', null]);
  assert.deepEqual(await ways(id), ['created', 'starting', 'running', 'stopping', 'stopped', 'starting', 'running']);
  await clear();
});

test('wait: until it is so, until it cannot be so, until it is gone, until the time is over', async () => {
  const { id } = await create('awaited');
  await s.behave({ BOOT_MS: 300 });
  const ready = w.client.vm.wait({ vm: id });
  const running = w.client.vm.wait({ vm: id, for: 'running' });
  assert.equal((await w.client.vm.wait({ vm: id, for: 'ended' })).state, 'created');
  await sleep(50);
  await w.client.vm.start({ vm: id, wait: 'none' });
  assert.equal((await running).state, 'running');
  assert.deepEqual([(await ready).state, (await ready).guest], ['running', 'ready']);
  const paused = w.client.vm.wait({ vm: id, for: 'paused' });
  await rejects(
    w.client.vm.wait({ vm: id, for: 'paused', timeout_ms: 100 }),
    'timeout',
    /it is running, its guest ready/,
  );
  await w.client.vm.pause({ vm: id });
  assert.equal((await paused).state, 'paused');
  const ended = w.client.vm.wait({ vm: id, for: 'ended' });
  const never = rejects(w.client.vm.wait({ vm: id }), 'vmm', /'awaited' will not be ready: it is crashed.*SIGKILL/);
  assert.ok(await killVmm(w, id));
  assert.equal((await ended).state, 'crashed');
  await never;
  await rejects(w.client.vm.wait({ vm: id }), 'vmm', /it is crashed/);
  await w.client.vm.start({ vm: id });
  const stopped = rejects(
    w.client.vm.wait({ vm: id, for: 'paused' }),
    'bad_state',
    /will not be paused: it is stopped/,
  );
  await sleep(50);
  await w.client.vm.stop({ vm: id });
  await stopped;
  const gone = rejects(w.client.vm.wait({ vm: id, for: 'running' }), 'not_found', /'awaited' was deleted/);
  await sleep(50);
  await w.client.vm.delete({ vm: id });
  await gone;
  await clear();
});

test('a silent agent: Ctrl-Alt-Del is pressed where the machine has it, in the middle of the time', async () => {
  await using fc = await stage('firecracker');
  const { client } = fc.w;
  const { id } = await client.vm.create({ name: 'keys', memory_mib: 128 });
  await fc.behave({ BOOT_MS: 60_000, CAD: 'reset', STUBBORN: 1 });
  await client.vm.start({ vm: id, wait: 'running' });
  const began = performance.now();
  const { last_exit } = await client.vm.stop({ vm: id, timeout_ms: 4000 });
  const took = performance.now() - began;
  assert.deepEqual([last_exit?.reason, last_exit?.signal], ['The guest shut down.', null]);
  assert.ok(took >= 1900 && took < 4000, `${took}`);
  await fc.behave({ BOOT_MS: 60_000 });
  await client.vm.start({ vm: id, wait: 'running' });
  const termed = await client.vm.stop({ vm: id, timeout_ms: 300 });
  assert.match(termed.last_exit?.reason ?? '', /did not shut down in time; the VMM was ended by SIGTERM/);
  await client.vm.delete({ vm: id });
  await nothingLeft(fc.w);
});
