import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { poll } from '../src/lib/deadline.ts';
import { silentLog } from '../src/lib/log.ts';
import { isAlive, type ProcRef } from '../src/lib/proc.ts';
import type { MachineEnd } from '../src/vmm/machine.ts';
import { Qmp } from '../src/vmm/qmp.ts';
import { RunDir } from '../src/vmm/run_dir.ts';
import { bench, echoed, egressOf, ID, soon } from './standin/vmm.ts';

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
const orphan = async (spec: object): Promise<ProcRef> => {
  const owner = spawn(process.execPath, [join(import.meta.dirname, 'standin/owner.ts'), JSON.stringify(spec)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = await once(createInterface({ input: owner.stdout }), 'line', { signal: soon() });
  owner.kill('SIGKILL');
  await once(owner, 'exit');
  return JSON.parse(line);
};

test('a VMM outlives its killed daemon and is adopted: old ports go, new ones work', async () => {
  await using b = await bench();
  const proc = await orphan(b.spec);
  assert.ok(await isAlive(proc), 'the VMM went with its daemon');
  assert.deepEqual(await b.vmm.find(join(b.root, 'run')), [{ kind: 'qemu', vm_id: ID, proc, dir: b.spec.dir }]);
  const old = await portsOf(b.spec.dir);
  assert.equal(old.length, 2);
  const machine = await b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc, accel: 'tcg' }, soon());
  assert.equal(await echoed(await egressOf(machine).next(), 'egress'), 'egress');
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

test('the end of an adopted VMM is seen within a second, its status is not known', async () => {
  await using b = await bench();
  const proc = await orphan(b.spec);
  const machine = await b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc, accel: 'tcg' }, soon());
  process.kill(proc.pid, 'SIGKILL');
  const end = await Promise.race([machine.ended, poll<MachineEnd>('the end', 1500, () => undefined)]);
  assert.deepEqual([end.known, end.exit_code, end.signal], [false, null, null]);
});

test('the reset of an adopted guest is seen', async () => {
  await using b = await bench({ RESET_MS: '700' });
  const first = await b.start();
  await first.release();
  const machine = await b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc: first.proc, accel: 'tcg' }, soon());
  assert.equal((await machine.ended).guest_reset, true);
});

test('a VMM that stands still is adopted all the same, and its channels come when it goes on', async () => {
  await using b = await bench({}, { adopt_ms: 200 });
  const first = await b.start();
  await first.release();
  process.kill(first.proc.pid, 'SIGSTOP');
  const machine = await b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc: first.proc, accel: 'tcg' }, soon());
  const egress = egressOf(machine);
  process.kill(first.proc.pid, 'SIGCONT');
  assert.equal(await echoed(await egress.next(), 'awake'), 'awake');
});

test('a control socket that is lost while the VMM lives comes again', async () => {
  await using b = await bench();
  const first = await b.start();
  // a second owner waits behind the first, as QEMU serves one client; it gets its turn when that goes
  const second = b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc: first.proc, accel: 'tcg' }, soon());
  setTimeout(() => void first.release(), 100);
  const machine = await second;
  assert.equal(await echoed(await machine.openControl(soon()), 'mine'), 'mine');
  await machine.release();
});

test('a dead process is not adopted, nor one that took its number', async () => {
  await using b = await bench();
  const machine = await b.start();
  const other = { ...machine.proc, start_ticks: machine.proc.start_ticks + 1 };
  const adopt = b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc: other, accel: 'tcg' }, soon());
  await assert.rejects(adopt, (error: unknown) => error instanceof Fault && error.code === 'vmm');
});

test('a command without answer ends the control connection, and the next one works', async () => {
  await using b = await bench({ STALL: 'stop' }, { command_ms: 300, log: silentLog() });
  const machine = await b.start();
  await assert.rejects(
    machine.pause(),
    (error: unknown) => error instanceof Fault && /longer than 300 ms/.test(error.message),
  );
  assert.equal(await machine.paused(), false);
  assert.equal(await echoed(await machine.openControl(soon()), 'back'), 'back');
});
