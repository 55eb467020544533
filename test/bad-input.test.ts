/** Bad input: the right code, one clear sentence, and nothing half done. */
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, before, test } from 'node:test';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { agentBinaries } from './kit/agent.ts';
import { audit } from './kit/audit.ts';
import { REPO, type World, world } from './kit/world.ts';

const rejects = (promise: Promise<unknown>, code: FaultCode, message: RegExp, hint?: RegExp): Promise<void> =>
  assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof Fault, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    assert.ok(!error.message.includes('\n'), 'one sentence');
    if (hint !== undefined) assert.match(error.hint ?? '', hint);
    return true;
  });

let w: World;
before(async () => {
  w = await world({ seed: 'booted' });
});
after(async () => {
  await w[Symbol.asyncDispose]();
});

const ID = 'vm_01h455vb4pex5vsknk084sn02q';

test('what does not fit the contract is refused before anything is done', async () => {
  const call = (name: string, args: Record<string, unknown>) => w.client.call(name, args);
  await rejects(call('vm.create', { name: 'a', colour: 'red' }), 'invalid', /colour/);
  await rejects(call('vm.create', { name: 'a', vcpus: 'two' }), 'invalid', /vcpus/);
  await rejects(call('vm.create', { name: 'a', vcpus: 1.5 }), 'invalid', /vcpus/);
  await rejects(call('vm.create', { name: 'a', memory_mib: -1 }), 'invalid', /memory_mib/);
  await rejects(call('vm.create', {}), 'invalid', /name/);
  await rejects(call('vm.create', { name: '' }), 'invalid', /name/);
  await rejects(call('vm.create', { name: '-rf' }), 'invalid', /name/);
  await rejects(call('vm.create', { name: '../../etc' }), 'invalid', /name/);
  await rejects(call('vm.create', { name: 'x'.repeat(64) }), 'invalid', /name/);
  await rejects(call('vm.create', { name: ID }), 'invalid', /look like an ID|name/);
  await rejects(call('vm.create', { name: 'a', image: 'nope' }), 'not_found', /no image 'nope'/, /image list/);
  await rejects(call('vm.create', { name: 'a', kernel: 'nope' }), 'not_found', /no kernel 'nope'/, /kernel list/);
  await rejects(call('vm.create', { name: 'a', ws: 'nope' }), 'not_found', /no workspace 'nope'/, /ws list/);
  await rejects(
    call('vm.create', { name: 'a', root_size_bytes: 16 * 1024 * 1024 }),
    'invalid',
    /smaller|shrink|too small|shrink/i,
  );
  await rejects(call('ws.create', { name: 'a' }), 'invalid', /size/, /--size/);
  await rejects(
    call('image.build', { name: 'b', rootfs: 'debian:99' }),
    'not_found',
    /debian:99/,
    /rootfs download debian 99/,
  );
  await rejects(call('image.build', { name: 'debian', rootfs: 'debian:12' }), 'exists', /'debian' exists already/);
  for (const op of ['vm.get', 'vm.start', 'vm.stop', 'vm.delete', 'vm.history']) {
    await rejects(call(op, { vm: 'ghost' }), 'not_found', /no VM 'ghost'/, /vm list/);
    await rejects(call(op, { vm: ID }), 'not_found', /vm_01h455/);
  }
  await rejects(call('job.get', { job: 'nope' }), 'not_found', /no job/);
  await rejects(call('job.cancel', { job: 'nope' }), 'not_found', /no job/);
  assert.deepEqual(await w.client.vm.list(), []);
  assert.deepEqual(await audit(w), []);
});

test('a name is taken once, whoever is faster', async () => {
  const all = await Promise.allSettled(Array.from({ length: 10 }, () => w.client.vm.create({ name: 'twin' })));
  assert.equal(all.filter(r => r.status === 'fulfilled').length, 1);
  for (const r of all) {
    if (r.status === 'rejected') assert.match(String(r.reason), /'twin' exists already/);
  }
  assert.equal((await w.client.ws.list()).length, 1, 'the losers left no workspace');
  await w.client.vm.delete({ vm: 'twin' });
  assert.deepEqual(await audit(w), []);
});

test('a start without a root workspace, of what runs, and twice at once', async () => {
  const vm = await w.client.vm.create({ name: 'web' });
  await w.client.ws.detach({ ws: vm.root_ws_id ?? '' });
  await rejects(
    w.client.vm.start({ vm: 'web' }),
    'bad_state',
    /Cannot start VM 'web': it has no root workspace/,
    /ws attach/,
  );
  assert.equal((await w.client.vm.get({ vm: 'web' })).state, 'created', 'a refused start changes no state');
  await w.client.ws.attach({ ws: vm.root_ws_id ?? '', vm: 'web', role: 'root' });
  const both = await Promise.allSettled([w.client.vm.start({ vm: 'web' }), w.client.vm.start({ vm: 'web' })]);
  assert.equal(both.filter(r => r.status === 'fulfilled').length, 1);
  const refused = both.find(r => r.status === 'rejected');
  assert.ok(refused?.status === 'rejected' && refused.reason instanceof Fault);
  assert.equal(refused.reason.code, 'busy');
  assert.match(refused.reason.message, /vm\.start is at work on it/);
  assert.equal((await w.vmms()).length, 1, 'one VMM');
  await rejects(w.client.vm.start({ vm: 'web' }), 'bad_state', /Cannot start VM 'web': it is running/);
  await rejects(w.client.ws.detach({ ws: vm.root_ws_id ?? '' }), 'bad_state', /it is running/, /vm stop web/);
  await rejects(w.client.ws.remove({ ws: vm.root_ws_id ?? '' }), 'in_use', /attached/);
  await rejects(w.client.image.remove({ image: 'debian' }), 'in_use', /debian/);
  await w.client.vm.stop({ vm: 'web', force: true });
  await rejects(w.client.vm.stop({ vm: 'web' }), 'bad_state', /Cannot stop VM 'web': it is stopped/);
  await rejects(w.client.exec.run({ vm: 'web', argv: ['true'] }).next(), 'bad_state', /it is stopped/, /vm start web/);
  await w.client.vm.delete({ vm: 'web' });
  await w.client.ws.remove({ ws: vm.root_ws_id ?? '' });
  assert.deepEqual(await audit(w), []);
});

test('no image and no kernel: both are named with the command that gets them', async () => {
  await using empty = await world();
  await rejects(empty.client.vm.create({ name: 'a' }), 'not_found', /there is no image/, /image build/);
  const ws = await empty.client.ws.create({ name: 'disk', size_bytes: 16 * 1024 * 1024 });
  await empty.client.vm.create({ name: 'a', ws: ws.id });
  await rejects(empty.client.vm.start({ vm: 'a' }), 'not_found', /there is no kernel/, /kernel download/);
  assert.equal((await empty.client.vm.get({ vm: 'a' })).state, 'created');
  await empty.client.vm.delete({ vm: 'a' });
  assert.equal((await empty.client.ws.list()).length, 1, 'a workspace that was brought stays');
  await empty.client.ws.remove({ ws: 'disk' });
  assert.deepEqual(await audit(empty), []);
});

test('a job that cannot succeed fails with the reason and leaves nothing', async () => {
  const kernel = await w.client.kernel.download({ version: '1.2.3', provider: 'debian' });
  const end = await w.client.job.wait({ job: kernel.id });
  assert.equal(end.state, 'failed');
  assert.equal(end.error?.code, 'not_found', end.error?.detail ?? '');
  assert.match(end.error?.detail ?? '', /1\.2\.3/);
  const rootfs = await w.client.job.wait({
    job: (await w.client.rootfs.download({ distro: 'debian', version: '99' })).id,
  });
  assert.equal(rootfs.error?.code, 'not_found', rootfs.error?.detail ?? '');
  const small = await w.client.image.build({ name: 'small', rootfs: 'debian:12', size_bytes: 32 * 1024 * 1024 });
  const failed = await w.client.job.wait({ job: small.id });
  assert.equal(failed.state, 'failed');
  assert.match(failed.error?.detail ?? '', /MiB/, 'it says how much is needed');
  assert.equal((await w.client.image.list()).length, 1);
  assert.deepEqual(await audit(w), []);
});

test('a root file system that was changed on disk is not built from', async () => {
  await using u = await world({ seed: 'booted' });
  const rootfs = (await u.client.rootfs.list())[0];
  const path = join(u.data_dir, 'rootfs', rootfs?.id ?? '', 'rootfs.tar');
  const bytes = await readFile(path);
  const at = bytes.length - 2_000_000;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await rm(path); // it is a link to another world's
  await writeFile(path, bytes);
  await rejects(u.client.rootfs.verify({ rootfs: 'debian:12' }), 'unverified', /rootfs\.tar/);
  const job = await u.client.image.build({ name: 'flipped', rootfs: 'debian:12' });
  const end = await u.client.job.wait({ job: job.id });
  assert.deepEqual([end.state, end.error?.code], ['failed', 'unverified']);
  assert.equal((await u.client.image.list()).length, 1);
  assert.deepEqual(await audit(u), []);
});

test('one daemon a data directory; a path that is too long is refused', async () => {
  const env = { ...process.env, NEXUS_AGENT_DIR: join((await agentBinaries()).probe, '..') };
  const nexusd = (dir: string) =>
    runAny([process.execPath, join(REPO, 'src/main.ts'), 'nexusd', '--data-dir', dir], { env, timeout_ms: 20_000 });
  const second = await nexusd(w.data_dir);
  assert.equal(second.code, 5, second.stderr);
  assert.match(second.stderr, /error: .*daemon/);
  await w.client.daemon.ping();
  const long = await nexusd(join(tmpdir(), 'x'.repeat(80)));
  assert.equal(long.code, 2);
  assert.match(long.stderr, /longer than 56 bytes/);
  const empty = await nexusd('');
  assert.equal(empty.code, 2);
  assert.match(empty.stderr, /need a path/);
});

test('the VMM is missing when the daemon starts, and when a VM starts', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nx-'));
  try {
    {
      await using u = await world({ qemu: join(dir, 'nowhere'), seed: 'booted' });
      assert.equal((await u.client.daemon.get({})).vmm.accel, null);
      await u.client.vm.create({ name: 'a' });
      await rejects(u.client.vm.start({ vm: 'a' }), 'host', /nowhere/);
      assert.equal((await u.client.vm.get({ vm: 'a' })).state, 'created');
    }
    const program = join(dir, 'qemu');
    await writeFile(program, `#!/bin/sh\nexec ${process.execPath} ${join(REPO, 'test/standin/qemu.ts')} "$@"\n`);
    await chmod(program, 0o755);
    await using u = await world({ qemu: program, seed: 'booted' });
    await u.client.vm.create({ name: 'a' });
    await rm(program);
    await rejects(u.client.vm.start({ vm: 'a' }), 'host', /qemu/);
    const vm = await u.client.vm.get({ vm: 'a' });
    assert.deepEqual([vm.state, vm.error?.code], ['failed', 'host']);
    await u.client.vm.delete({ vm: 'a' });
    assert.deepEqual(await audit(u), []);
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('a full disk: the clone says so and leaves nothing', {
  skip: process.getuid?.() !== 0 && 'mounting needs root',
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nxm-'));
  try {
    await mkdir(join(dir, 'm'));
    await run(['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', join(dir, 'm')]);
    await using u = await world({ parent: join(dir, 'm') });
    await run(['dd', 'if=/dev/zero', `of=${join(u.data_dir, 'tmp/ballast')}`, 'bs=1M', 'count=64']).catch(() => {});
    const vmDir = u.client.ws.create({ name: 'x', size_bytes: 16 * 1024 * 1024 });
    const error = await vmDir.then(
      () => undefined,
      (e: unknown) => e,
    );
    assert.ok(error instanceof Fault, 'not even a record fits');
    assert.equal(error.code, 'no_room', error.message);
    await u.client.daemon.ping();
    await rm(join(u.data_dir, 'tmp/ballast'));
    assert.equal((await u.client.ws.create({ name: 'x', size_bytes: 16 * 1024 * 1024 })).name, 'x', 'it recovers');
    assert.equal((await u.client.ws.list()).length, 1);
  } finally {
    await runAny(['umount', join(dir, 'm')]);
    await rm(dir, { recursive: true });
  }
});
