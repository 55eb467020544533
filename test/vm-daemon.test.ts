/** Daemons that die, stop and come back: their VMs, and what lies on disk. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, open, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { procsWithEnv } from '../src/lib/marked.ts';
import { isAlive, procRef, run } from '../src/lib/proc.ts';
import { killVmm, noVmm, rejects, staged, until, WHILE_PARENT } from './kit/behave.ts';
import { loopFs } from './kit/loop-fs.ts';
import { addImage } from './kit/own_image.ts';
import { world } from './kit/world.ts';

const s = await staged();
const { w, create, echo, clear } = s;

test('killed while VMs run: adopted, with the same process; commands run again, stops are clean', async () => {
  const { id } = await create('kept');
  const { pid } = await w.client.vm.start({ vm: id });
  await w.kill();
  await w.start();
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.pid], ['running', pid]);
  assert.equal(await echo(id), 'here\n');
  assert.equal((await w.client.vm.stop({ vm: id })).last_exit?.reason, 'The guest shut down.');
  await noVmm(w);
  await w.client.vm.start({ vm: id });
  assert.equal(await echo(id), 'here\n');
  await w.kill();
  await w.start();
  assert.ok(await killVmm(w, id));
  const crashed = await until(w, id, 'crashed', 1500);
  assert.match(crashed.last_exit?.reason ?? '', /exit status is unknown/);
  await clear();
});

test('killed during a start: the stray VMM is ended, the VM has failed and can be started', async () => {
  const { id } = await create('half');
  await s.behave({ HANG: 1 });
  const start = w.client.vm.start({ vm: id }).catch((e: unknown) => e);
  const [pid = 0] = await poll('the VMM', 5000, async () => {
    const found = await w.vmms();
    return found.length === 1 ? found : undefined;
  });
  const stray = await procRef(pid);
  await w.kill();
  assert.ok((await start) instanceof Error);
  assert.ok(stray !== undefined && (await isAlive(stray)), 'it outlived the daemon');
  await s.behave();
  await w.start();
  assert.ok(!(await isAlive(stray)));
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.pid, vm.guest], ['failed', null, null]);
  assert.match(vm.error?.detail ?? '', /daemon ended during the start/);
  assert.equal((await w.client.vm.start({ vm: id })).state, 'running');
  await clear();
});

test('killed during a stop: the next daemon finishes it', async () => {
  const { id } = await create('ending');
  await s.behave({ IGNORE_END: 1, STUBBORN: 1 });
  await w.client.vm.start({ vm: id });
  await s.behave();
  const stop = w.client.vm.stop({ vm: id }).catch((e: unknown) => e);
  await until(w, id, 'stopping');
  await w.kill();
  await stop;
  assert.equal((await w.vmms()).length, 1);
  await w.start();
  assert.equal((await w.client.vm.get({ vm: id })).state, 'stopping', 'the door does not wait for it');
  assert.ok(await killVmm(w, id));
  await until(w, id, 'stopped', 15_000);
  await noVmm(w);
  await clear();
});

test('a VMM that is silent keeps no daemon from starting; it is adopted and answers later', async () => {
  const { id } = await create('silent');
  const { pid } = await w.client.vm.start({ vm: id });
  await w.kill();
  process.kill(pid ?? 0, 'SIGSTOP');
  await w.start();
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.pid], ['paused', pid], 'alive is not crashed');
  assert.notEqual(vm.guest, 'ready');
  process.kill(pid ?? 0, 'SIGCONT');
  await poll('the guest', 15_000, async () => (await w.client.vm.get({ vm: id })).guest === 'ready' || undefined);
  await until(w, id, 'running');
  assert.equal(await echo(id), 'here\n');
  await clear();
});

test('what ended while no daemon was there is crashed, with its last lines; its sockets go', async () => {
  const { id } = await create('lonely');
  await s.behave({ CONSOLE: 'the last words\r\n' });
  await w.client.vm.start({ vm: id });
  await s.behave();
  const ended = await create('done');
  await w.client.vm.start({ vm: ended.id });
  await w.kill();
  assert.ok(await killVmm(w, id));
  await w.start();
  const vm = await w.client.vm.get({ vm: id });
  assert.equal(vm.state, 'crashed');
  assert.match(vm.last_exit?.reason ?? '', /while no daemon was there/);
  assert.ok(vm.last_exit?.console_tail.includes('the last words'), JSON.stringify(vm.last_exit));
  const left = (await readdir(join(w.data_dir, 'vms', id, 'run'))).filter(name => name.endsWith('.sock'));
  assert.deepEqual(left, []);
  assert.equal((await w.client.vm.get({ vm: ended.id })).state, 'running');
  assert.equal((await w.client.vm.start({ vm: id })).state, 'running');
  await clear();
});

test('VMMs that belong to nobody and half-made things go at the next start, whole disks when they are asked to; what is known stays', async () => {
  const { id } = await create('known');
  await w.client.vm.start({ vm: id });
  await w.client.vm.stop({ vm: id });
  await w.kill();
  const unknown = 'vm_01h455vb4pex5vsknk084sn02q';
  const strays: ChildProcess[] = [];
  for (const name of [unknown, id]) {
    const cwd = join(w.data_dir, 'vms', name, 'run');
    await mkdir(cwd, { recursive: true });
    const argv = ['-e', 'setInterval(() => {}, 1000)', '--', '-name', name, '-qmp', 'unix:qmp.sock'];
    strays.push(spawn(process.execPath, argv, { cwd, stdio: 'ignore', detached: true }));
  }
  const ends = strays.map(child => new Promise(resolve => child.once('exit', (_code, signal) => resolve(signal))));
  const at = (...parts: string[]) => join(w.data_dir, ...parts);
  const known = (await readdir(at('initrd')))[0] ?? '';
  const left = [
    at('tmp', 'job_01h455vb4pex5vsknk084sn02q', 'half.tar'),
    at('images', '.img_01h455vb4pex5vsknk084sn02q.00000000-0000-0000-0000-000000000000.part', 'disk.raw'),
    at('kernels', 'krn_01h455vb4pex5vsknk084sn02q', 'vmlinux'),
    at('rootfs', 'rfs_01h455vb4pex5vsknk084sn02q', 'rootfs.tar'),
    at('jobs', 'job_01h455vb4pex5vsknk084sn02q.log'),
    at(`.s${createHash('sha256').update(w.socket).digest('hex').slice(0, 6)}`, 's'),
    at('initrd', `.${known}.4b1c.tmp`),
    at('initrd', 'krn_01h455vb4pex5vsknk084sn02q-0123456789abcdef.cpio'),
  ];
  // whole, and unknown to this state: it may be an older one that was put back
  const whole = [
    at('images', 'img_01h455vb4pex5vsknk084sn02q', 'disk.raw'),
    at('workspaces', 'ws_01h455vb4pex5vsknk084sn02q', 'disk.raw'),
  ];
  for (const path of [...left, ...whole]) {
    await mkdir(join(path, '..'), { recursive: true });
    await writeFile(path, 'x');
  }
  await w.start();
  assert.deepEqual(await Promise.all(ends), ['SIGKILL', 'SIGKILL']);
  for (const path of left) assert.ok(!(await exists(path)), path);
  for (const path of whole) assert.ok(await exists(path), path);
  await w.client.daemon.gc({ dry_run: false });
  for (const path of whole) assert.ok(!(await exists(path)), path);
  assert.ok(await exists(at('initrd', known)));
  assert.ok(!(await exists(at('vms', unknown))));
  assert.deepEqual([(await w.client.image.list({})).length, (await w.client.kernel.list({})).length], [1, 1]);
  assert.equal((await w.client.vm.start({ vm: id })).state, 'running', 'its disk is whole');
  await clear();
});

test('killed during a build: what it had started ends, the job says so, nothing is left; and it can be done again', {
  timeout: 90_000,
}, async () => {
  const job = await w.client.image.build({ name: 'cut', rootfs: 'debian:12' });
  const children = () => procsWithEnv('NEXUS_OWNER', w.data_dir);
  await poll('a program of the build', 30_000, async () => (await children()).length > 0 || undefined);
  await w.kill();
  // one that takes no end of its input for an answer
  const stubborn = spawn('sh', ['-c', 'trap "" TERM; while :; do sleep 1; done'], {
    env: { ...process.env, NEXUS_OWNER: w.data_dir },
    stdio: 'ignore',
  });
  const ended = new Promise(resolve => stubborn.once('exit', (_code, signal) => resolve(signal)));
  await w.start();
  assert.equal(await ended, 'SIGKILL');
  assert.deepEqual(await children(), []);
  const { state, error } = await w.client.job.get({ job: job.id });
  assert.deepEqual([state, error?.code], ['interrupted', 'canceled']);
  await rejects(w.client.image.inspect({ image: 'cut' }), 'not_found');
  await clear();
  const again = await w.client.image.build({ name: 'cut', rootfs: 'debian:12' });
  await poll('a program of the build', 30_000, async () => (await children()).length > 0 || undefined);
  await w.stop();
  assert.deepEqual(await children(), [], 'a daemon that stops ends its jobs');
  await w.start();
  assert.equal((await w.client.job.get({ job: again.id })).state, 'canceled');
  await clear();
});

test('a daemon that is told to stop: VMs go on, starts are undone, streams and waits end', {
  timeout: 180_000,
}, async () => {
  const kept = await create('kept');
  const { pid } = await w.client.vm.start({ vm: kept.id });
  const mute = await create('mute');
  await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
  const waiting = rejects(w.client.vm.start({ vm: mute.id }), 'canceled', /daemon stops; VM 'mute' goes on running/);
  await until(w, mute.id, 'running');
  const polite = await create('polite');
  await w.client.vm.start({ vm: polite.id, wait: 'running' });
  const half = await create('half');
  await s.behave({ HANG: 1 });
  const undone = rejects(w.client.vm.start({ vm: half.id }), 'canceled', /daemon stops/);
  await until(w, half.id, 'starting');
  await poll('four VMMs', 5000, async () => (await w.vmms()).length === 4 || undefined);
  const stopping = rejects(w.client.vm.stop({ vm: polite.id }), 'canceled');
  await until(w, polite.id, 'stopping');
  const stream = (async () => {
    for await (const _ of w.client.event.watch({})) {
      // until it ends
    }
  })().catch((e: unknown) => e);
  const exec = execResult(w.client.exec.run({ vm: kept.id, argv: WHILE_PARENT })).catch((e: unknown) => e);
  await sleep(100);
  const began = performance.now();
  await w.stop();
  assert.ok(performance.now() - began < 10_000, 'nothing held it up');
  await s.behave();
  await Promise.all([waiting, undone, stopping]);
  for (const end of await Promise.all([stream, exec])) {
    assert.ok(end instanceof Fault && end.code === 'canceled', String(end));
  }
  assert.equal((await w.vmms()).length, 3, 'the half-started one is gone');
  await w.start();
  assert.equal(await echo(kept.id), 'here\n');
  assert.equal((await w.client.vm.get({ vm: kept.id })).pid, pid);
  assert.equal((await w.client.vm.get({ vm: mute.id })).state, 'running');
  assert.deepEqual((await w.client.vm.get({ vm: half.id })).state, 'stopped');
  assert.equal((await w.client.vm.get({ vm: polite.id })).state, 'stopping', 'the next daemon goes on with it');
  await w.client.vm.stop({ vm: polite.id, force: true });
  assert.ok(!(await w.log()).includes('"level":50'), await w.log());
  await clear();
});

test('a store that cannot write: nothing runs unheld, and the truth is stored as soon as it can be', async () => {
  const limit = (to: string) => run(['prlimit', '--pid', String(w.daemon().pid), `--fsize=${to}:unlimited`]);
  const vm = await create('full');
  const { id } = vm;
  await w.client.vm.start({ vm: id });
  await limit('1');
  try {
    assert.ok(await killVmm(w, id));
    await poll('the daemon to notice', 5000, async () => (await w.log()).includes('cannot be stored yet') || undefined);
    assert.equal((await w.client.vm.get({ vm: id })).state, 'running', 'the record is old');
    await rejects(w.client.vm.delete({ vm: id }), 'host');
  } finally {
    await limit('unlimited');
  }
  await until(w, id, 'crashed');
  await s.behave({ HANG: 1 });
  const start = w.client.vm.start({ vm: id }).catch((e: unknown) => e);
  await poll('the VMM', 5000, async () => (await w.vmms()).length === 1 || undefined);
  await limit('1');
  try {
    await rejects(w.client.vm.stop({ vm: id }), 'host');
    assert.ok((await start) instanceof Fault);
    await noVmm(w);
  } finally {
    await limit('unlimited');
  }
  await until(w, id, 'stopped');
  await s.behave();
  assert.equal((await w.client.vm.start({ vm: id })).state, 'running');
  await limit('1');
  try {
    await rejects(w.client.vm.stop({ vm: id, force: true }), 'host');
    await noVmm(w);
  } finally {
    await limit('unlimited');
  }
  const stopped = await until(w, id, 'stopped');
  assert.equal(stopped.last_exit?.reason, 'It was stopped by force.');
  await clear();
  await rm(join(w.data_dir, 'core'), { force: true });
});

test('a disk that is full to the last byte: a VM can be deleted, and gives its room back', async t => {
  const fs = await loopFs('ext4', 96);
  if (typeof fs === 'string') return t.skip(fs);
  await using _fs = fs;
  await using full = await world({ parent: fs.dir });
  const image = join(fs.dir, 'image.raw');
  await writeFile(image, Buffer.alloc(16 * 1024 * 1024), { mode: 0o644 });
  await addImage(full, image, 'tiny', 'agent');
  const vm = await full.client.vm.create({ name: 'full', root_size_bytes: 128 * 1024 * 1024 });
  const kept = await full.client.vm.create({ name: 'kept', root_size_bytes: 16 * 1024 * 1024 });
  // as its guest would
  const disk = await open(join(full.data_dir, 'workspaces', vm.root_ws_id ?? '', 'disk.raw'), 'r+');
  try {
    for (let at = 0, size = 1024 * 1024; ; ) {
      const { bytesWritten } = await disk.write(Buffer.alloc(size, 'x'), 0, size, at);
      at += bytesWritten;
      if (bytesWritten < size) size = 4096;
    }
  } catch (error) {
    assert.equal(error instanceof Error && 'code' in error ? error.code : error, 'ENOSPC');
  } finally {
    await disk.close();
  }
  const updates = async () => {
    for (let n = 0; n < 3000; n++) await full.client.vm.update({ vm: kept.id, vcpus: 1 + (n % 4) });
  };
  await rejects(updates(), 'no_room');
  await full.client.vm.delete({ vm: vm.id });
  await rejects(full.client.vm.get({ vm: vm.id }), 'not_found');
  assert.equal((await full.client.vm.update({ vm: kept.id, vcpus: 3 })).vcpus, 3);
});
