/** Kernels, archives, images and jobs through the door. */
import assert from 'node:assert/strict';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { JobMessage } from '../src/api/job.ts';
import { poll } from '../src/lib/deadline.ts';
import { audit } from './kit/audit.ts';
import { nothingLeft, rejects } from './kit/behave.ts';
import { type World, world } from './kit/world.ts';

let w: World;
before(async () => {
  w = await world({ seed: 'booted' });
});
after(async () => {
  await w[Symbol.asyncDispose]();
});

/** Another file in its place: the world's own is linked to others. */
const replace = async (path: string, change: (data: Buffer) => Buffer): Promise<() => Promise<void>> => {
  const data = await readFile(path);
  await rm(path);
  await writeFile(path, change(Buffer.from(data)));
  return async () => {
    await rm(path, { force: true });
    await writeFile(path, data, { mode: 0o644 });
  };
};

const flipped = (data: Buffer): Buffer => {
  const at = data.length >> 1;
  data.writeUInt8(data.readUInt8(at) ^ 1, at);
  return data;
};

test('a kernel: by ID and by version, verified, and told when a bit of it is another', async () => {
  const [kernel] = await w.client.kernel.list({});
  assert.ok(kernel);
  assert.deepEqual(await w.client.kernel.inspect({ kernel: kernel.id }), kernel);
  assert.deepEqual(await w.client.kernel.inspect({ kernel: kernel.version }), kernel);
  await rejects(w.client.kernel.inspect({ kernel: '9.9' }), 'not_found', /no kernel '9\.9'/);
  assert.deepEqual(await w.client.kernel.verify({ kernel: kernel.id }), kernel);
  for (const name of ['vmlinux', 'modules.cpio']) {
    const restore = await replace(join(w.data_dir, 'kernels', kernel.id, name), flipped);
    await rejects(w.client.kernel.verify({ kernel: kernel.id }), 'unverified', new RegExp(name));
    await restore();
  }
  await w.client.kernel.verify({ kernel: kernel.id });
});

test('downloads of one kernel under three names at once make one', { timeout: 300_000 }, async () => {
  await using empty = await world({});
  const provider = 'debian';
  const asked = [{ provider }, { provider, version: '6.12' }, { provider, version: '6.12' }];
  const jobs = await Promise.all(asked.map(input => empty.client.kernel.download(input)));
  assert.equal(jobs[1]?.id, jobs[2]?.id, 'two that ask for the same share a job');
  const ends = await Promise.all(jobs.map(j => empty.client.job.wait({ job: j.id, timeout_ms: 240_000 })));
  const kernels = await empty.client.kernel.list({});
  assert.equal(kernels.length, 1);
  for (const end of ends) assert.deepEqual([end.state, end.result_id], ['succeeded', kernels[0]?.id]);
  assert.deepEqual(await readdir(join(empty.data_dir, 'kernels')), [kernels[0]?.id]);
});

test('an archive: by ID and by name, verified, told when it is another or gone', async () => {
  const [rootfs] = await w.client.rootfs.list({});
  assert.ok(rootfs);
  assert.deepEqual([rootfs.distro, rootfs.version], ['debian', '12']);
  assert.deepEqual(await w.client.rootfs.inspect({ rootfs: rootfs.id }), rootfs);
  assert.deepEqual(await w.client.rootfs.inspect({ rootfs: 'debian:12' }), rootfs);
  await rejects(w.client.rootfs.inspect({ rootfs: 'debian:99' }), 'not_found');
  assert.deepEqual(await w.client.rootfs.verify({ rootfs: 'debian:12' }), rootfs);
  const path = join(w.data_dir, 'rootfs', rootfs.id, 'rootfs.tar');
  const restore = await replace(path, flipped);
  await rejects(w.client.rootfs.verify({ rootfs: 'debian:12' }), 'unverified');
  await rm(path);
  await rejects(w.client.rootfs.verify({ rootfs: 'debian:12' }), 'unverified');
  await restore();
  await w.client.rootfs.verify({ rootfs: rootfs.id });
});

test('a build: asked for twice it is one job; what it reads stays; canceled it leaves nothing', async () => {
  const job = await w.client.image.build({ name: 'other', rootfs: 'debian:12' });
  assert.deepEqual([job.kind, job.subject, job.state], ['image.build', 'other', 'running']);
  assert.equal((await w.client.image.build({ name: 'other', rootfs: 'debian:12' })).id, job.id);
  const fault = await rejects(
    w.client.image.build({ name: 'other', rootfs: 'debian:12', init: 'busybox' }),
    'busy',
    /does it already, with other settings/,
  );
  assert.match(fault.hint ?? '', new RegExp(job.id));
  await rejects(w.client.image.build({ name: 'debian', rootfs: 'debian:12' }), 'exists', /'debian' exists already/);
  await poll(
    'the build to read',
    20_000,
    async () => (await w.client.job.get({ job: job.id })).progress !== null || undefined,
  );
  await rejects(w.client.rootfs.remove({ rootfs: 'debian:12' }), 'in_use', /'debian:12': it is being read just now/);
  await rejects(w.client.job.wait({ job: job.id, timeout_ms: 50 }), 'timeout', /it goes on/);
  assert.deepEqual(
    (await w.client.job.list({ state: 'running' })).map(j => j.id),
    [job.id],
  );
  const messages: JobMessage[] = [];
  const followed = (async () => {
    for await (const m of w.client.job.log({ job: job.id })) messages.push(m);
  })();
  const ended = await w.client.job.cancel({ job: job.id });
  assert.deepEqual([ended.state, ended.error?.code], ['canceled', 'canceled']);
  await followed;
  const last = messages.at(-1);
  assert.ok(last?.type === 'end' && last.job.state === 'canceled');
  await rejects(w.client.job.cancel({ job: job.id }), 'bad_state', /it is canceled/);
  assert.deepEqual(await w.client.job.list({ state: 'running' }), []);
  assert.deepEqual((await w.client.job.list({ limit: 1 }))[0], await w.client.job.get({ job: job.id }));
  const replayed: JobMessage[] = [];
  for await (const m of w.client.job.log({ job: job.id })) replayed.push(m);
  assert.deepEqual(replayed.at(-1), last);
  assert.deepEqual(
    replayed.filter(m => m.type === 'log'),
    messages.filter(m => m.type === 'log'),
    'the log on disk is what was followed',
  );
  await rejects(w.client.image.inspect({ image: 'other' }), 'not_found');
  assert.deepEqual(await audit(w), []);
});

test('an archive goes; what was built from it stays', async () => {
  const image = await w.client.image.inspect({ image: 'debian' });
  assert.deepEqual(await w.client.image.inspect({ image: image.id }), image);
  await w.client.rootfs.remove({ rootfs: 'debian:12' });
  await rejects(w.client.rootfs.remove({ rootfs: 'debian:12' }), 'not_found');
  assert.deepEqual(await w.client.rootfs.list({}), []);
  assert.deepEqual(await readdir(join(w.data_dir, 'rootfs')), []);
  await rejects(w.client.image.build({ name: 'other', rootfs: 'debian:12' }), 'not_found');
  const vm = await w.client.vm.create({ name: 'still', memory_mib: 64 });
  assert.equal(vm.image_id, image.id);
  await w.client.vm.start({ vm: vm.id });
  assert.equal(vm.kernel_id, null);
  for (const { id } of await w.client.kernel.list({}))
    await rejects(w.client.kernel.remove({ kernel: id }), 'in_use', /VM 'still' uses it/);
  await w.client.vm.delete({ vm: vm.id });
  await w.client.image.remove({ image: image.id });
  await nothingLeft(w);
});
