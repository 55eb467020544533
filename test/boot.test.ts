/** Real kernels, a real Debian, real QEMU: from a download to a command inside, and back to nothing. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { audit } from './kit/audit.ts';
import { ask } from './kit/door.ts';
import { type World, world } from './kit/world.ts';

const sh = async (w: World, vm: string, script: string) =>
  execResult(w.client.exec.run({ vm, argv: ['/bin/sh', '-c', script] }));

/** What the guest does is what inspect, top and metrics say of it. */
const seesWork = async (w: World): Promise<void> => {
  const before = (await w.client.vm.inspect({ vm: 'web' })).usage;
  await sh(w, 'web', 'dd if=/dev/urandom of=/root/filled bs=1M count=24 conv=fsync');
  const seen = await w.client.vm.inspect({ vm: 'web' });
  assert.ok((seen.usage?.disk_write_bytes ?? 0) - (before?.disk_write_bytes ?? 0) >= 24 * 1024 ** 2);
  assert.ok((seen.usage?.cpu_ms ?? 0) > (before?.cpu_ms ?? 0));
  assert.ok((seen.usage?.memory_bytes ?? 0) > 64 * 1024 ** 2);
  assert.ok((seen.boot_ms ?? 0) > 100 && (seen.boot_ms ?? 0) < (seen.uptime_ms ?? 0), `booted in ${seen.boot_ms} ms`);
  assert.ok((seen.disks[0]?.used_bytes ?? 0) >= 24 * 1024 ** 2);
  const busy = sh(w, 'web', 'timeout 5 sh -c "while :; do :; done"');
  const [load] = await Array.fromAsync(w.client.vm.top({ interval_ms: 2000, count: 2 })).then(all => all.slice(-1));
  assert.ok((load?.vms[0]?.cpu_percent ?? 0) > 10, `${load?.vms[0]?.cpu_percent} % for an endless loop`);
  await busy;
  const { text } = await ask(w.socket, { path: '/metrics' });
  const written = Number(/^nexus_vm_disk_written_bytes_total\{.*name="web"\} (\d+)/m.exec(text)?.[1]);
  assert.ok(written >= 24 * 1024 ** 2, String(written));
  assert.match(text, /^nexus_vm_boot_seconds_count 1$/m);
};

test('a VM with nothing but a name boots, runs commands, stops clean and leaves nothing', {
  timeout: 300_000,
}, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const vm = await w.client.vm.create({ name: 'web' });
  assert.deepEqual([vm.state, vm.vcpus, vm.memory_mib], ['created', 2, 1024]);
  const started = await w.client.vm.start({ vm: 'web' });
  assert.deepEqual([started.state, started.guest, started.runs_on], ['running', 'ready', 'qemu']);

  const id = await sh(
    w,
    'web',
    'id -u; uname -r; . /etc/os-release; echo $ID $VERSION_ID; hostname; nproc; echo oops >&2; exit 7',
  );
  const kernel = (await w.client.kernel.list({}))[0];
  assert.ok(kernel);
  assert.equal(id.stdout.toString(), `0\n${kernel.version}\ndebian 12\nweb\n2\n`);
  assert.equal(id.stderr.toString(), 'oops\n');
  assert.deepEqual([id.exit_code, id.signal], [7, null]);
  const killed = await sh(w, 'web', 'kill -SEGV $$');
  assert.deepEqual([killed.exit_code, killed.signal], [null, 'SEGV']);

  const disk = await sh(w, 'web', 'df -B1 --output=size / | tail -1; stat -c %u:%g:%a /usr/bin/passwd /usr/bin/wall');
  const [size, passwd] = disk.stdout.toString().trim().split('\n');
  assert.ok(Number(size) > 7 * 1024 ** 3, `the root grew to its workspace: ${size}`);
  assert.equal(passwd, '0:0:4755', 'owner and set-uid bit');
  await sh(w, 'web', 'for i in 1 2 3 4 5; do (true & exec true) & done; sleep 0.5');
  // one that has just died is a zombie for a moment
  const count = 'grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l';
  const zombies = async () => (await sh(w, 'web', count)).stdout.toString().trim();
  await poll('the end of all zombies', 10_000, async () => (await zombies()) === '0' || undefined);
  assert.equal(
    (
      await sh(w, 'web', 'echo data > /root/kept; sync -f /root/kept; find /lib/modules -name "overlay.ko*" | wc -l')
    ).stdout.toString(),
    '1\n',
  );

  const record = await w.client.vm.get({ vm: 'web' });
  assert.match(record.guest_facts?.os ?? '', /Debian/);
  await seesWork(w);
  const boots: string[] = [];
  const follow = (async () => {
    for await (const m of w.client.vm.logs({ vm: 'web', follow: true }))
      if (m.type === 'line' && m.line.includes("start of VM 'web'")) boots.push(m.line);
  })();

  const stopped = await w.client.vm.stop({ vm: 'web' });
  assert.equal(stopped.state, 'stopped');
  assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
  const root = join(w.data_dir, 'workspaces', stopped.root_ws_id ?? '', 'disk.raw');
  const fsck = await runAny(['e2fsck', '-fn', root]);
  assert.equal(fsck.code, 0, fsck.stdout);

  await follow; // the VM is down
  await w.client.vm.start({ vm: 'web' });
  const lines = async (boot: number) => await Array.fromAsync(w.client.vm.logs({ vm: 'web', boot, tail: 100_000 }));
  const [first] = await lines(-1);
  assert.deepEqual([first?.type === 'line' && first.line], boots);
  assert.ok((await lines(0)).length > 1, 'its console was kept');
  assert.ok((await lines(-1)).length > 1, 'that of the boot before too');
  assert.equal((await sh(w, 'web', 'cat /root/kept')).stdout.toString(), 'data\n');
  assert.deepEqual((await w.client.vm.history({ vm: 'web' })).map(h => h.to).reverse(), [
    'created',
    'starting',
    'running',
    'stopping',
    'stopped',
    'starting',
    'running',
  ]);
  await w.client.vm.delete({ vm: 'web' });
  assert.deepEqual(await audit(w), []);
});

test('the clock of a guest runs as fast as the host clock', { timeout: 300_000 }, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: 'clock', memory_mib: 512 });
  await w.client.vm.start({ vm: 'clock' });
  const once = async () => {
    const before = performance.now();
    const out = (await sh(w, 'clock', 'cut -d" " -f1 /proc/uptime; date +%s.%N')).stdout.toString().trim().split('\n');
    const after = performance.now();
    return {
      took: after - before,
      host: (before + after) / 2,
      wall: Date.now() / 1000,
      uptime: Number(out[0]),
      date: Number(out[1]),
    };
  };
  /** The quickest of a few says most precisely when it was. */
  const read = async () => {
    const all = [await once(), await once(), await once(), await once(), await once()];
    return all.reduce((best, one) => (one.took < best.took ? one : best));
  };
  const first = await read();
  await sleep(10_000);
  const last = await read();
  const ratio = ((last.uptime - first.uptime) * 1000) / (last.host - first.host);
  assert.ok(Math.abs(ratio - 1) < 0.03, `guest seconds a host second: ${ratio}`);
  assert.ok(Math.abs(last.date - last.wall) < 2, `guest ${last.date}, host ${last.wall}`);
});

test('a kernel that patches itself while both its processors run lives on', { timeout: 300_000 }, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: 'patch', vcpus: 2, memory_mib: 512 });
  await w.client.vm.start({ vm: 'patch' });
  const busy = 'while true; do /bin/true; done';
  // a static key in the scheduler: the kernel's own code changes at each write (under emulation with a thread for each processor: dead in 12 s)
  const key = '/proc/sys/kernel/sched_schedstats';
  const patch = `timeout 20 sh -c 'while true; do echo 1 > ${key}; echo 0 > ${key}; echo; done'`;
  const { stdout } = await sh(w, 'patch', `${busy} & ${busy} & ${patch} | wc -l; kill %1 %2`);
  assert.ok(Number(stdout.toString()) > 20, `it patched itself ${stdout.toString().trim()} times`);
  const vm = await w.client.vm.get({ vm: 'patch' });
  assert.deepEqual([vm.state, vm.guest], ['running', 'ready']);
  await w.client.vm.delete({ vm: 'patch' });
});

test('both kernels of Debian 12 boot: 6.12 and 6.1', { timeout: 600_000 }, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const job = await w.client.job.wait({
    job: (await w.client.kernel.download({ version: '6.1', provider: 'debian' })).id,
    timeout_ms: 300_000,
  });
  assert.equal(job.state, 'succeeded', job.error?.detail ?? '');
  const kernels = await w.client.kernel.list({});
  assert.deepEqual(kernels.map(k => k.version.split('.').slice(0, 2).join('.')).sort(), ['6.1', '6.12']);
  for (const kernel of kernels) {
    await w.client.kernel.verify({ kernel: kernel.id });
    const name = `k${kernel.version.split('.')[1]}`;
    await w.client.vm.create({ name, kernel: kernel.version, memory_mib: 512 });
    await w.client.vm.start({ vm: name });
    assert.equal((await sh(w, name, 'uname -r')).stdout.toString().trim(), kernel.version);
    assert.equal((await w.client.vm.stop({ vm: name })).last_exit?.reason, 'The guest shut down.');
  }
  await assert.rejects(w.client.kernel.remove({ kernel: kernels[0]?.id ?? '' }), { code: 'in_use' });
});

test('a root file system that is garbage: the start says so, and the VM can be deleted', {
  timeout: 300_000,
}, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const ws = await w.client.ws.create({ name: 'empty', size_bytes: 64 * 1024 * 1024 });
  await w.client.vm.create({ name: 'bad', ws: ws.name, memory_mib: 256 });
  await assert.rejects(w.client.vm.start({ vm: 'bad', timeout_ms: 30_000 }), (e: unknown) => {
    assert.ok(e instanceof Fault);
    assert.equal(e.code, 'vmm');
    assert.match(e.hint ?? '', /vm logs bad/);
    return true;
  });
  const vm = await w.client.vm.get({ vm: 'bad' });
  assert.equal(vm.state, 'crashed');
  assert.match(vm.last_exit?.console_tail.join('\n') ?? '', /nexus: /, 'the guest said on its console what is wrong');
  await w.client.vm.delete({ vm: 'bad' });
  const ls = await run(['ls', join(w.data_dir, 'vms')]);
  assert.equal(ls.stdout, '');
  assert.equal(
    (await w.client.ws.inspect({ ws: 'empty' })).vm_id,
    null,
    'a workspace that was attached is only detached',
  );
});

test('the daemon is killed and comes back: the VM never stopped', { timeout: 300_000 }, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: 'live', memory_mib: 512 });
  const { pid } = await w.client.vm.start({ vm: 'live' });
  const boot = (
    await sh(w, 'live', 'cat /proc/sys/kernel/random/boot_id; nohup sleep 1000 >/dev/null 2>&1 & echo $! > /run/pid')
  ).stdout.toString();
  await w.kill();
  await w.start();
  const vm = await w.client.vm.get({ vm: 'live' });
  assert.deepEqual([vm.state, vm.pid], ['running', pid]);
  const again = await sh(w, 'live', 'cat /proc/sys/kernel/random/boot_id; kill -0 $(cat /run/pid) && echo alive');
  assert.equal(again.stdout.toString(), `${boot}alive\n`);
  assert.equal((await w.client.vm.stop({ vm: 'live' })).last_exit?.reason, 'The guest shut down.');
  await w.client.vm.delete({ vm: 'live' });
  assert.deepEqual(await audit(w), []);
  assert.ok(!(await readFile(join(w.data_dir, 'nexusd.log'), 'utf8')).includes('"level":50'), await w.log());
});
