/** The daemon dies and fails at every step of workspaces, and of what clears up. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { rejects } from './kit/behave.ts';
import { prove } from './kit/crash.ts';
import { deeds, settled } from './kit/crash_deeds.ts';
import { wsVerbs } from './kit/crash_ws.ts';
import { truthful } from './kit/ground.ts';

const here = settled();

prove(here, wsVerbs(here));

/** What /proc says of it is what it says of a VMM of that VM. */
const likeVmm = (vm: string): ChildProcess => {
  const words = ['-e', 'setInterval(() => {}, 1000)', '--', '-qmp', 'none', '-name', vm];
  return spawn(process.execPath, words, { cwd: join(here().w.data_dir, 'vms', vm, 'run'), stdio: 'ignore' });
};
const endOf = (left: ChildProcess) => poll('its end', 10_000, () => left.signalCode ?? undefined);

test('a start whose VMM could not be ended: its disks go to nobody else before that process is gone, and stop calls it off', async () => {
  const { client, create, disk } = deeds(here);
  const vm = await create();
  const root_ws = vm.root_ws_id ?? '';
  await disk();
  await client().vm.start({ vm: 'vm' });
  const left = likeVmm(vm.id);
  try {
    await here().fault('fail start.running');
    await rejects(client().vm.restart({ vm: 'vm' }), 'internal', /Its VMM does not end/);
    const { state, error } = await client().vm.get({ vm: 'vm' });
    assert.deepEqual([state, error?.hint], ['starting', 'nexusctl vm stop --force vm']);
    await rejects(client().ws.detach({ ws: root_ws }), 'bad_state');
    await rejects(client().ws.attach({ ws: 'disk', vm: 'vm' }), 'bad_state');
    await rejects(client().ws.snapshot({ ws: root_ws, name: 'copy' }), 'bad_state');
    await rejects(client().vm.start({ vm: 'vm' }), 'bad_state');
    assert.equal(left.exitCode ?? left.signalCode, null);
    const stopped = await client().vm.stop({ vm: 'vm', force: true });
    assert.deepEqual([stopped.state, stopped.restart_at_ms], ['stopped', null]);
    await endOf(left);
    assert.deepEqual(await truthful(here().w), []);
    await client().vm.start({ vm: 'vm' });
  } finally {
    left.kill('SIGKILL');
  }
  await client().vm.delete({ vm: 'vm' });
  await client().ws.remove({ ws: 'disk' });
});

test('a VMM of a stopped VM that a daemon could not end at its start is gone before the disks are used', async () => {
  const { client, create, disk } = deeds(here);
  const vm = await create();
  await disk();
  await client().vm.start({ vm: 'vm' });
  await client().vm.stop({ vm: 'vm', force: true });
  for (const use of [
    () => client().ws.snapshot({ ws: vm.root_ws_id ?? '', name: 'copy' }),
    () => client().ws.attach({ ws: 'disk', vm: 'vm' }),
    () => client().ws.detach({ ws: 'disk' }),
    () => client().vm.start({ vm: 'vm' }),
    () => client().vm.delete({ vm: 'vm' }),
  ]) {
    await client()
      .vm.stop({ vm: 'vm', force: true })
      .catch(() => {});
    await here().w.stop();
    const left = likeVmm(vm.id);
    try {
      await here().fault('fail reconcile.end');
      await here().w.start();
      assert.deepEqual([await here().wish(), left.exitCode ?? left.signalCode], ['', null]);
      await use();
      await endOf(left);
    } finally {
      left.kill('SIGKILL');
    }
  }
  for (const ws of ['copy', 'disk']) await client().ws.remove({ ws });
  assert.deepEqual(await truthful(here().w), []);
});
