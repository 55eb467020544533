/** Firecrackers of the store start VMs: the default one or the newest, from the moment it is there. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../src/lib/proc.ts';
import { rejects } from './kit/behave.ts';
import { becomingElf, kernelElf } from './kit/sources.ts';
import { type World, world } from './kit/world.ts';

/** The path of the stand-in that a daemon was told of. */
const toldOf = async (w: World): Promise<string> => {
  const environ = await readFile(`/proc/${w.daemon().pid}/environ`, 'latin1');
  return /\0NEXUS_FIRECRACKER=([^\0]+)/.exec(`\0${environ}`)?.[1] ?? '';
};

test('none, then one, then another: which one starts VMs, and which one may go', async t => {
  await using w = await world({ firecracker: 'standin', seed: 'booted' });
  const dir = await mkdtemp(join(tmpdir(), 'nexus-firecracker-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const standin = await toldOf(w);
  await w.stop();
  await w.start({ NEXUS_FIRECRACKER: '', PATH: '/usr/bin:/bin:/usr/sbin:/sbin' });
  const { client } = w;
  /** Its version is what the stand-in says. */
  const download = async (mark: string): Promise<string> => {
    const from = join(dir, mark);
    await writeFile(from, becomingElf(standin, mark));
    const { id } = await client.firecracker.download({ from, version: '1.12.1' });
    const job = await client.job.wait({ job: id, timeout_ms: 60_000 });
    assert.equal(job.state, 'succeeded', JSON.stringify(job.error));
    return job.result_id ?? '';
  };
  await client.vm.create({ name: 'one', vmm: 'firecracker', memory_mib: 128 });
  const fault = await rejects(client.vm.start({ vm: 'one' }), 'host', /there is no Firecracker/);
  assert.match(fault.hint ?? '', /nexusctl firecracker download/);
  const first = await download('first');
  await client.vm.start({ vm: 'one' });
  const { runs_on, vmm_version } = await client.vm.get({ vm: 'one' });
  assert.deepEqual([runs_on, vmm_version], ['firecracker', '1.12.1']);
  await rejects(client.firecracker.remove({ firecracker: first }), 'in_use', /VM 'one' uses it/);

  const second = await download('second');
  assert.notEqual(second, first);
  await client.firecracker.set_default({ firecracker: first });
  await client.vm.create({ name: 'two', vmm: 'firecracker', memory_mib: 128 });
  await client.vm.start({ vm: 'two' });
  await rejects(client.firecracker.remove({ firecracker: first }), 'in_use');
  await client.firecracker.set_default({ firecracker: first, off: true });
  await client.firecracker.remove({ firecracker: second }); // no VM was started by it
  await w.kill();
  await w.start({ NEXUS_FIRECRACKER: '' });
  await rejects(client.firecracker.remove({ firecracker: first }), 'in_use', /VM '(one|two)' uses it/);
  for (const vm of ['one', 'two']) await client.vm.stop({ vm });
  await client.vm.delete({ vm: 'two' });
  await client.firecracker.remove({ firecracker: first });
  await rejects(client.vm.start({ vm: 'one' }), 'host', /there is no Firecracker/);
  await client.vm.delete({ vm: 'one' });
});

test('a kernel that has all built in needs no modules: its initramfs is the agent alone', async t => {
  await using w = await world({ firecracker: 'standin', seed: 'booted' });
  const { client } = w;
  const dir = await mkdtemp(join(tmpdir(), 'nexus-kernel-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const from = join(dir, 'vmlinux-6.18.9');
  await writeFile(from, kernelElf());
  const { id } = await client.kernel.download({ from });
  const { result_id } = await client.job.wait({ job: id, timeout_ms: 60_000 });
  await client.vm.create({ name: 'bare', kernel: '6.18.9', memory_mib: 128 });
  await client.vm.start({ vm: 'bare' });
  const [initrd = ''] = (await readdir(join(w.data_dir, 'initrd'))).filter(name => name.startsWith(`${result_id}-`));
  const { stdout } = await run(['cpio', '-t', '-F', join(w.data_dir, 'initrd', initrd)]);
  assert.deepEqual(stdout.trim().split('\n'), ['dev', 'dev/console', 'init', 'newroot', 'proc', 'run', 'sys']);
  await rejects(client.kernel.remove({ kernel: '6.18.9' }), 'in_use', /VM 'bare' uses it/);
  await client.vm.delete({ vm: 'bare' });
  await client.kernel.remove({ kernel: '6.18.9' });
});
