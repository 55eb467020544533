/** What can be seen of VMs: inspect and top. */
import assert from 'node:assert/strict';
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import type { VmInspect } from '../src/api/vm_inspect.ts';
import { poll } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { killVmm, nothingLeft, noVmm, rejects, staged, until } from './kit/behave.ts';

const s = await staged();
const { w } = s;
const create = (name: string) => w.client.vm.create({ name, memory_mib: 64, tags: { team: 'a' } });

/** What only a VM with a VMM has. */
const ofVmm = ({ pid, api_socket, uptime_ms, usage, guest }: VmInspect) => [pid, api_socket, uptime_ms, usage, guest];
const NOTHING = [null, null, null, null, null];

test('inspect tells the truth in every state', async () => {
  const { id } = await create('seen');
  const scratch = await w.client.ws.create({ name: 'scratch', size_bytes: 64 * 1024 * 1024 });
  await w.client.ws.attach({ ws: scratch.id, vm: id });
  const look = () => w.client.vm.inspect({ vm: 'seen' });
  const created = await look();
  assert.deepEqual(ofVmm(created), NOTHING);
  assert.deepEqual([created.boots, created.boot_ms, created.vmm, created.last_exit], [0, null, null, null]);
  assert.deepEqual(
    created.disks.map(d => [d.name, d.role, d.read_only]),
    [
      ['seen-root', 'root', false],
      ['scratch', 'data', false],
    ],
  );
  for (const disk of created.disks) {
    const file = await stat(disk.path);
    assert.deepEqual([disk.size_bytes, disk.used_bytes], [file.size, file.blocks * 512]);
  }
  assert.match(created.image?.os ?? '', /Debian GNU\/Linux 12/);
  assert.equal(created.image?.rootfs?.distro, 'debian');
  assert.match(created.kernel?.version ?? '', /^6\.12/);
  assert.deepEqual([created.tags, created.restart.policy], [{ team: 'a' }, 'never']);

  await s.behave({ CONSOLE: 'hello\r\n' });
  const started = await w.client.vm.start({ vm: id });
  const running = await look();
  assert.equal(running.pid, started.pid);
  assert.ok((await stat(running.api_socket ?? '')).isSocket());
  assert.ok((await stat(running.log_path)).size > 0);
  assert.ok((await stat(running.vmm_log_path)).isFile());
  assert.deepEqual([running.boots, running.guest, running.vmm?.kind], [1, 'ready', 'qemu']);
  assert.ok(running.boot_ms !== null && running.boot_ms < 60_000 && running.boot_ms === started.boot_ms);
  assert.ok(running.uptime_ms !== null && running.uptime_ms < 60_000);
  assert.ok((running.usage?.memory_bytes ?? 0) > 1024 ** 2 && (running.usage?.cpu_ms ?? 0) > 0);
  assert.deepEqual([running.usage?.disk_read_bytes, running.usage?.disk_write_bytes], [1000, 500]);
  assert.ok(running.guest_facts !== null);
  const { load, uptime_ms, memory_total_bytes, memory_available_bytes } = running.guest_now ?? assert.fail('no word');
  assert.ok(load.every(n => n >= 0) && uptime_ms > 0 && memory_available_bytes < memory_total_bytes);

  assert.ok(await killVmm(w, id));
  await until(w, id, 'crashed');
  const crashed = await look();
  assert.deepEqual(ofVmm(crashed), NOTHING);
  assert.ok(crashed.last_exit?.console_tail.includes('hello'));
  await s.behave({ DIE: 3 });
  await rejects(w.client.vm.start({ vm: id }), 'vmm');
  await s.behave();
  const failed = await look();
  assert.deepEqual(ofVmm(failed), NOTHING);
  assert.deepEqual([failed.boots, failed.error?.code], [2, 'vmm']);
  await w.client.vm.delete({ vm: id });
  await w.client.ws.remove({ ws: scratch.id });
  await rejects(look(), 'not_found');
  await nothingLeft(w);
});

test('inspect for people', async () => {
  const { id } = await create('shown');
  const said = await w.ctl('vm', 'inspect', 'shown');
  assert.equal(said.code, 0, said.stderr);
  assert.match(said.stdout, /^shown: created \(vm_/);
  assert.match(said.stdout, /\nimage {2,}debian: Debian GNU\/Linux 12/);
  assert.match(said.stdout, /\nNAME +ROLE +DEVICE +MOUNT +SIZE/);
  assert.doesNotMatch(said.stdout, /undefined|NaN|\[object|null/);
  assert.equal(JSON.parse((await w.ctl('vm', 'inspect', 'shown', '--json')).stdout).id, id);
  await w.client.vm.delete({ vm: id });
});

test('top: samples of what runs; a VMM that does not answer keeps no other waiting', async () => {
  const names = ['quick', 'silent', 'idle'];
  for (const name of names) await create(name);
  await w.client.vm.start({ vm: 'quick' });
  await s.behave({ STALL: 'query-blockstats' });
  await w.client.vm.start({ vm: 'silent' });
  await s.behave();
  const began = performance.now();
  const samples = await Array.fromAsync(w.client.vm.top({ interval_ms: 400, count: 3 }));
  const took = performance.now() - began;
  assert.ok(took < 15_000, `${took} ms`);
  assert.equal(samples.length, 3);
  for (const { vms } of samples) {
    assert.deepEqual(
      vms.map(vm => vm.name),
      ['quick', 'silent'],
    );
    const [quick, silent] = vms;
    assert.ok(quick?.cpu_percent != null && (quick.memory_bytes ?? 0) > 0 && (quick.uptime_ms ?? 0) > 0);
    assert.equal(quick.disk_read_rate_bytes, 0);
    assert.ok(silent?.cpu_percent != null && (silent.memory_bytes ?? 0) > 0, 'the kernel says that much');
    assert.equal(silent.disk_read_rate_bytes, null);
  }
  const [one] = await Array.fromAsync(w.client.vm.top({ vm: ['idle', 'quick'], interval_ms: 200, count: 1 }));
  assert.deepEqual(
    one?.vms.map(vm => [vm.name, vm.state, vm.memory_bytes === null]),
    [
      ['idle', 'created', true],
      ['quick', 'running', false],
    ],
  );
  await rejects(w.client.vm.top({ vm: ['nobody'] }).next(), 'not_found');
  const said = await w.ctl('top', '--interval', '300ms', '--count', '2');
  assert.equal(said.code, 0, said.stderr);
  assert.match(said.stdout, /NAME +STATE[\s\S]*\nquick +running +ready +[\d.]+ %[\s\S]*NAME +STATE/);
  assert.ok(!said.stdout.includes('\u001b'), 'no drawing where there is no terminal');
  const lines = (await w.ctl('vm', 'top', 'quick', '--count', '2', '--interval', '200ms', '--json')).stdout.split('\n');
  assert.equal(JSON.parse(lines[1] ?? '').vms[0].name, 'quick');
  for (const name of names) await w.client.vm.delete({ vm: name });
  const none = await w.ctl('top', '--count', '1');
  assert.match(none.stdout, /No VM runs/);
  await nothingLeft(w);
});

test('each VMM runs in a group of its own where there are such, from its first instruction to its end', async t => {
  const { id } = await create('grouped');
  const started = await w.client.vm.start({ vm: id });
  const { cgroup, pid, usage } = await w.client.vm.inspect({ vm: id });
  const said = (await w.client.daemon.doctor({})).checks.find(one => one.name === 'cgroup');
  if (cgroup === null) {
    t.diagnostic(`no groups here: ${said?.detail}`);
    assert.equal(said?.level, 'warn');
    await w.client.vm.delete({ vm: id });
    return;
  }
  assert.equal(said?.level, 'ok');
  assert.ok(basename(cgroup).startsWith(`${id}-`));
  const inside = async () => (await readFile(`${cgroup}/cgroup.procs`, 'utf8')).trim().split('\n').map(Number);
  assert.ok((await inside()).includes(pid ?? 0));
  const usec = Number(/^usage_usec (\d+)$/m.exec(await readFile(`${cgroup}/cpu.stat`, 'utf8'))?.[1]);
  assert.ok((usage?.cpu_ms ?? 0) > 0 && (usage?.cpu_ms ?? 0) <= usec / 1000);
  await w.kill();
  await w.start();
  assert.equal((await w.client.vm.inspect({ vm: id })).cgroup, cgroup, 'found again by the next daemon');
  assert.ok((await inside()).includes(started.pid ?? 0));
  const none = () =>
    poll(
      'no group',
      10_000,
      async () => (await readdir(dirname(cgroup)).catch(() => [])).every(n => !n.startsWith(id)) || undefined,
    );
  await w.client.vm.stop({ vm: id });
  await none();
  await w.client.vm.start({ vm: id });
  assert.ok(await killVmm(w, id));
  await until(w, id, 'crashed');
  await none();
  await s.behave({ DIE: 1 });
  await rejects(w.client.vm.start({ vm: id }), 'vmm');
  await s.behave();
  await none();
  const again = await w.client.vm.start({ vm: id });
  await w.kill();
  process.kill(again.pid ?? 0, 'SIGKILL');
  await noVmm(w);
  await w.start();
  await none();
  await w.client.vm.delete({ vm: id });
  assert.equal(await exists(dirname(cgroup)), false, 'and nothing of ours is left');
  await nothingLeft(w);
});
