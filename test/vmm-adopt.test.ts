import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { poll } from '../src/lib/deadline.ts';
import { isAlive, type ProcRef } from '../src/lib/proc.ts';
import type { Machine, MachineEnd } from '../src/vmm/machine.ts';
import { Qmp } from '../src/vmm/qmp.ts';
import { RunDir } from '../src/vmm/run_dir.ts';
import { ACCEL, type Bench, bench, echoed, egressOf, ID, soon } from './standin/vmm.ts';

/** The ports that a VMM has plugged, asked by a client of our own. */
const portsOf = async (dir: string): Promise<string[]> => {
  using at = new RunDir(dir);
  const qmp = new Qmp(await at.connect('qmp.sock', soon()), () => {});
  await qmp.greet(5000, soon());
  const list = await qmp.command('query-chardev');
  qmp.close();
  await qmp.closed;
  assert.ok(Array.isArray(list));
  return list.map(one => String(one.label));
};

/** Starts a machine in a process of its own and kills that process in the middle of a transfer. */
const orphan = async (b: Bench): Promise<ProcRef> => {
  const argv = [join(import.meta.dirname, 'standin/owner.ts'), b.vmm.kind, b.program, JSON.stringify(b.spec)];
  const owner = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = await once(createInterface({ input: owner.stdout }), 'line', { signal: soon() });
  owner.kill('SIGKILL');
  await once(owner, 'exit');
  return JSON.parse(line);
};

const adopt = (b: Bench, proc: ProcRef): Promise<Machine> =>
  b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc, accel: ACCEL[b.vmm.kind] }, soon());

for (const kind of ['firecracker', 'qemu'] as const) {
  test(`${kind}: a VMM outlives its killed daemon and is adopted`, async () => {
    await using b = await bench(kind);
    const proc = await orphan(b);
    assert.ok(await isAlive(proc), 'the VMM went with its daemon');
    assert.deepEqual(await b.vmm.find(join(b.root, 'run')), [{ kind, vm_id: ID, proc, dir: b.spec.dir }]);
    const machine = await adopt(b, proc);
    assert.equal(await echoed(await egressOf(machine).next(), 'egress'), 'egress');
    assert.equal(await echoed(await machine.openControl(soon()), 'control'), 'control');
    await machine.release();
  });

  test(`${kind}: the end of an adopted VMM is seen within a second, its status is not known`, async () => {
    await using b = await bench(kind);
    const proc = await orphan(b);
    const machine = await adopt(b, proc);
    process.kill(proc.pid, 'SIGKILL');
    const end = await Promise.race([machine.ended, poll<MachineEnd>('the end', 1500, () => undefined)]);
    assert.deepEqual([end.known, end.exit_code, end.signal, end.guest_reset], [false, null, null, false]);
  });

  test(`${kind}: the reset of an adopted guest is seen`, async () => {
    await using b = await bench(kind, { RESET_MS: '700' });
    const first = await b.start();
    await first.release();
    const machine = await adopt(b, first.proc);
    assert.equal((await machine.ended).guest_reset, true);
  });

  test(`${kind}: a VMM that stands still is adopted all the same, and its channels come when it goes on`, async () => {
    await using b = await bench(kind, {}, { adopt_ms: 200 });
    const first = await b.start();
    await first.release();
    process.kill(first.proc.pid, 'SIGSTOP');
    const machine = await adopt(b, first.proc);
    const egress = egressOf(machine);
    process.kill(first.proc.pid, 'SIGCONT');
    assert.equal(await echoed(await egress.next(), 'awake'), 'awake');
  });

  test(`${kind}: a dead process is not adopted, nor one that took its number`, async () => {
    await using b = await bench(kind);
    const { proc } = await b.start();
    const adopted = adopt(b, { ...proc, start_ticks: proc.start_ticks + 1 });
    await assert.rejects(adopted, (error: unknown) => error instanceof Fault && error.code === 'vmm');
  });
}

test('Firecracker: a VMM that is paused is adopted as such', async () => {
  await using b = await bench('firecracker');
  const first = await b.start();
  await first.pause();
  await first.release();
  const machine = await adopt(b, first.proc);
  assert.equal(await machine.paused(), true);
  await machine.resume();
  assert.equal(await echoed(await machine.openControl(soon()), 'awake'), 'awake');
});

test('QEMU: ports of a killed daemon go, and no name is used twice', async () => {
  await using b = await bench('qemu');
  const proc = await orphan(b);
  const old = await portsOf(b.spec.dir);
  assert.equal(old.length, 2);
  const machine = await adopt(b, proc);
  assert.equal(await echoed(await machine.openControl(soon()), 'control'), 'control');
  await machine.release();
  const now = await portsOf(b.spec.dir);
  assert.equal(now.length, 2);
  assert.deepEqual(
    now.filter(name => old.includes(name)),
    [],
    'a name was used twice',
  );
});

test('QEMU: a control socket that is lost while the VMM lives comes again', async () => {
  await using b = await bench('qemu');
  const first = await b.start();
  // a second owner waits behind the first, as QEMU serves one client; it gets its turn when that goes
  const second = adopt(b, first.proc);
  setTimeout(() => void first.release(), 100);
  const machine = await second;
  assert.equal(await echoed(await machine.openControl(soon()), 'mine'), 'mine');
  await machine.release();
});

test('QEMU: a command without answer ends the control connection, and the next one works', async () => {
  await using b = await bench('qemu', { STALL: 'stop' }, { command_ms: 300 });
  const machine = await b.start();
  await assert.rejects(
    machine.pause(),
    (error: unknown) => error instanceof Fault && /longer than 300 ms/.test(error.message),
  );
  assert.equal(await machine.paused(), false);
  assert.equal(await echoed(await machine.openControl(soon()), 'back'), 'back');
});

test('QEMU: more connections than ports: the next ones wait for their turn', async () => {
  await using b = await bench('qemu');
  const machine = await b.start();
  const streams = await Promise.all(Array.from({ length: 28 }, () => machine.openControl(soon())));
  await assert.rejects(machine.openControl(AbortSignal.timeout(50)), { name: 'TimeoutError' });
  const next = machine.openControl(soon());
  streams[3]?.destroy();
  assert.equal(await echoed(await next, 'my turn'), 'my turn');
  for (const stream of streams) stream.destroy();
});
