/** Disks and assets through the door: what is used stays, what belongs to a VM goes with it, and nobody gets between. */
import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { Fault } from '../src/api/fault.ts';
import { nothingLeft, rejects, staged, until } from './kit/behave.ts';

const SMALL = 16 * 1024 * 1024;
const s = await staged();
const vmm = process.env.NEXUS_TEST_STANDIN === 'firecracker' ? 'firecracker' : 'qemu';
const { w, create } = s;
const disk = (id: string | null) => join(w.data_dir, 'workspaces', id ?? '', 'disk.raw');

test('an empty disk and a clone: sizes, names, and no way to shrink', async () => {
  const empty = await w.client.ws.create({ name: 'empty', size_bytes: SMALL });
  assert.deepEqual([empty.image_id, empty.size_bytes, empty.vm_id, empty.owned], [null, SMALL, null, false]);
  assert.equal((await stat(disk(empty.id))).size, SMALL);
  await rejects(w.client.ws.create({ name: 'empty', size_bytes: SMALL }), 'exists', /'empty' exists already/);
  await rejects(w.client.ws.create({ name: 'lost' }), 'invalid', /its size is missing/);
  await rejects(w.client.ws.create({ name: 'lost', image: 'nope' }), 'not_found');
  await rejects(w.client.ws.create({ name: 'lost', image: 'debian', size_bytes: SMALL }), 'invalid', /do not shrink/);
  const small = /^Cannot create VM 'lost' with 16 MiB: image 'debian' has .*, and disks do not shrink\.$/;
  await rejects(w.client.vm.create({ name: 'lost', image: 'debian', root_size_bytes: SMALL }), 'invalid', small);
  assert.equal((await readdir(join(w.data_dir, 'workspaces'))).length, 1, 'nothing was copied');
  const image = await w.client.image.inspect({ image: 'debian' });
  const clone = await w.client.ws.create({ image: image.id, size_bytes: image.size_bytes + SMALL });
  assert.equal((await stat(disk(clone.id))).size, image.size_bytes + SMALL);
  assert.match(clone.name, /^ws-/);
  await rejects(w.client.image.remove({ image: 'debian' }), 'in_use', /workspace 'ws-.*' came from it/);
  const odd = await w.client.ws.create({ name: 'odd', size_bytes: SMALL + 1 });
  assert.deepEqual([odd.size_bytes, (await stat(disk(odd.id))).size], [SMALL + 4096, SMALL + 4096], 'whole blocks');
  assert.equal((await w.client.ws.update({ ws: 'odd', size_bytes: SMALL + 4097 })).size_bytes, SMALL + 8192);
  assert.equal((await stat(disk(odd.id))).size, SMALL + 8192);
  await rejects(w.client.ws.update({ ws: 'odd', size_bytes: SMALL + 8191 }), 'invalid', /do not shrink/);
  await w.client.ws.remove({ ws: 'odd' });
  const of_odd = await w.client.vm.create({ name: 'odd', image: 'debian', root_size_bytes: image.size_bytes + 1 });
  assert.equal((await stat(disk(of_odd.root_ws_id))).size, image.size_bytes + 4096);
  await w.client.vm.delete({ vm: 'odd' });
  const twins = await Promise.allSettled(
    Array.from({ length: 5 }, () => w.client.ws.create({ name: 'twin', size_bytes: SMALL })),
  );
  assert.equal(twins.filter(r => r.status === 'fulfilled').length, 1);
  assert.equal((await readdir(join(w.data_dir, 'workspaces'))).length, 3, 'the losers left nothing');
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
  await nothingLeft(w);
});

test('attached at most once, changed only while the VM does not run, kept from removal', async () => {
  const a = await create('a');
  const b = await create('b');
  await w.client.ws.create({ name: 'data', size_bytes: SMALL });
  await rejects(w.client.ws.detach({ ws: 'data' }), 'bad_state', /is not attached/);
  const attached = await w.client.ws.attach({ ws: 'data', vm: 'a' });
  assert.deepEqual([attached.vm_id, attached.role, attached.owned], [a.id, 'data', false]);
  await rejects(w.client.ws.attach({ ws: 'data', vm: 'b' }), 'in_use', /attached to VM 'a'/);
  await rejects(w.client.ws.attach({ ws: 'data', vm: 'a', role: 'root' }), 'in_use');
  await rejects(w.client.ws.remove({ ws: 'data' }), 'in_use', /attached to VM 'a'/);
  await rejects(w.client.vm.create({ name: 'c', ws: 'data' }), 'in_use');
  await rejects(w.client.vm.create({ name: 'c', ws: 'data', image: 'debian' }), 'invalid', /not both/);
  await w.client.vm.start({ vm: 'a' });
  await rejects(w.client.ws.detach({ ws: 'data' }), 'bad_state', /change the disks of VM 'a': it is running/);
  await w.client.vm.stop({ vm: 'a' });
  assert.equal((await w.client.ws.detach({ ws: 'data' })).vm_id, null);
  await rejects(w.client.ws.attach({ ws: 'data', vm: 'b', role: 'root' }), 'in_use', /has 'b-root' as root/);
  await w.client.ws.attach({ ws: 'data', vm: 'b' });
  const root = await w.client.ws.detach({ ws: b.root_ws_id ?? '' });
  assert.deepEqual([root.owned, (await w.client.vm.get({ vm: 'b' })).root_ws_id], [false, null]);
  await rejects(w.client.vm.start({ vm: 'b' }), 'bad_state', /no root workspace/);
  await w.client.vm.delete({ vm: 'b' });
  assert.equal((await w.client.ws.inspect({ ws: 'data' })).vm_id, null, 'what was attached is only detached');
  await w.client.vm.delete({ vm: 'a', keep_disk: true });
  const kept = await w.client.ws.inspect({ ws: a.root_ws_id ?? '' });
  assert.deepEqual([kept.vm_id, kept.owned], [null, false]);
  await stat(disk(kept.id));
  const again = await w.client.vm.create({ name: 'again', ws: kept.name });
  assert.deepEqual([again.root_ws_id, again.image_id], [kept.id, kept.image_id]);
  await w.client.vm.start({ vm: 'again' });
  await w.client.vm.delete({ vm: 'again' });
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
  await nothingLeft(w);
});

test('an inspection names what a workspace hangs together with, and what it takes', async () => {
  const vm = await create('seen');
  await w.client.ws.create({ name: 'data', size_bytes: SMALL });
  await w.client.ws.attach({ ws: 'data', vm: 'seen', mount: '/srv/data', read_only: true });
  const [data, root] = await w.client.ws.list({});
  assert.deepEqual(
    [data?.name, data?.vm_name, data?.image_name, data?.position, data?.mount, data?.read_only],
    ['data', 'seen', null, 1, '/srv/data', true],
  );
  assert.deepEqual(
    [root?.id, root?.vm_name, root?.image_name, root?.role, root?.position],
    [vm.root_ws_id, 'seen', 'debian', 'root', 0],
  );
  const seen = await w.client.ws.inspect({ ws: 'data' });
  assert.deepEqual(seen, data);
  assert.equal(seen.path, disk(seen.id));
  const { blocks } = await stat(seen.path);
  assert.equal(seen.used_bytes, blocks * 512);
  if (seen.own_bytes !== null) assert.equal(seen.own_bytes + (seen.shared_bytes ?? 0), seen.used_bytes);
  const disks = (await w.client.vm.inspect({ vm: 'seen' })).disks.map(d => [d.device, d.mount, d.read_only, d.name]);
  assert.deepEqual(disks, [
    ['/dev/vda', '/', false, 'seen-root'],
    ['/dev/vdb', '/srv/data', true, 'data'],
  ]);
  const [image] = await w.client.image.list({});
  assert.ok((image?.used_bytes ?? 0) > SMALL);
  await w.client.vm.delete({ vm: 'seen' });
  const left = await w.client.ws.list({});
  assert.deepEqual(
    left.map(ws => [ws.name, ws.vm_name, ws.mount, ws.position]),
    [['data', null, null, null]],
    'the root went with its VM, what was attached is free',
  );
  await rejects(w.client.ws.inspect({ ws: vm.root_ws_id ?? '' }), 'not_found');
  await w.client.ws.remove({ ws: 'data' });
  await nothingLeft(w);
});

test('a place for a disk: not where the system lies, not twice, not for a root', async () => {
  await create('m');
  for (const name of ['one', 'two']) await w.client.ws.create({ name, size_bytes: SMALL, format: 'none' });
  for (const mount of [
    '/',
    'data',
    '/proc/x',
    '/dev',
    '/run/a',
    '/tmp/b',
    '/etc',
    '/usr',
    '/usr/bin',
    '/a b',
    '/a:ro',
    '/a/../b',
    '//a',
    '/a/',
    `/${'x'.repeat(99)}`,
  ])
    await rejects(w.client.ws.attach({ ws: 'one', vm: 'm', mount }), 'invalid');
  await rejects(w.client.ws.attach({ ws: 'one', vm: 'm', role: 'root', mount: '/data' }), 'invalid', /for data disks/);
  await rejects(w.client.ws.attach({ ws: 'one', vm: 'm', role: 'root', read_only: true }), 'invalid', /for data disks/);
  await rejects(w.client.ws.create({ image: 'debian', format: 'ext4' }), 'invalid', /clone of an image/);
  await w.client.ws.attach({ ws: 'one', vm: 'm', mount: '/data' });
  await rejects(w.client.ws.attach({ ws: 'two', vm: 'm', mount: '/data' }), 'in_use', /has 'one' at \/data/);
  await w.client.vm.delete({ vm: 'm' });
  for (const ws of ['one', 'two']) await w.client.ws.remove({ ws });
  await nothingLeft(w);
});

test('a snapshot is a workspace of its own; there is none of a disk in use', async () => {
  const vm = await create('s');
  const root = vm.root_ws_id ?? '';
  const copy = await w.client.ws.snapshot({ ws: 's-root', name: 'copy' });
  const image = await w.client.image.inspect({ image: 'debian' });
  assert.deepEqual([copy.source_ws_id, copy.image_id, copy.vm_id, copy.owned], [root, image.id, null, false]);
  assert.equal((await stat(disk(copy.id))).size, (await stat(disk(root))).size);
  await rejects(w.client.ws.snapshot({ ws: 's-root', name: 'copy' }), 'exists');
  await w.client.vm.start({ vm: 's' });
  const fault = await rejects(w.client.ws.snapshot({ ws: 's-root' }), 'bad_state', /its VM 's' is running/);
  assert.match(fault.hint ?? '', /nexusctl vm stop s/);
  await w.client.vm.pause({ vm: 's' });
  await rejects(w.client.ws.snapshot({ ws: 's-root' }), 'bad_state', /is paused/);
  await w.client.vm.delete({ vm: 's' });
  const again = await w.client.ws.snapshot({ ws: 'copy' });
  assert.equal(again.name, again.id.replace('_', '-'));
  await w.client.ws.remove({ ws: 'copy' });
  await w.client.vm.create({ name: 'from', ws: again.id, memory_mib: 64 });
  await w.client.vm.start({ vm: 'from' });
  assert.equal((await w.client.vm.inspect({ vm: 'from' })).image?.name, 'debian');
  await w.client.vm.delete({ vm: 'from' });
  await w.client.ws.remove({ ws: again.id });
  await nothingLeft(w);
});

test('a disk grows, never shrinks, and a running guest is told', async () => {
  await w.client.ws.create({ name: 'data', size_bytes: SMALL });
  await rejects(w.client.ws.update({ ws: 'data', size_bytes: SMALL - 1 }), 'invalid');
  await rejects(w.client.ws.update({ ws: 'none', size_bytes: SMALL }), 'not_found');
  const free = await w.client.ws.update({ ws: 'data', size_bytes: 2 * SMALL });
  assert.deepEqual(
    [free.size_bytes, free.file_system, (await stat(disk(free.id))).size],
    [2 * SMALL, 'at_next_start', 2 * SMALL],
  );
  await rejects(w.client.ws.update({ ws: 'data', size_bytes: SMALL }), 'invalid', /'data' 16 MiB long: it has 32 MiB/);
  const vm = await create('g');
  const root = await w.client.ws.inspect({ ws: vm.root_ws_id ?? '' });
  await w.client.ws.attach({ ws: 'data', vm: 'g' });
  assert.equal((await w.client.ws.update({ ws: 'data', size_bytes: 3 * SMALL })).file_system, 'not_mounted');
  await w.client.vm.start({ vm: 'g' });
  const longer = root.size_bytes + SMALL;
  const grown = await w.client.ws.update({ ws: 'g-root', size_bytes: longer });
  assert.deepEqual([grown.file_system, grown.size_bytes, grown.notice], ['grown', longer, undefined]);
  const same = await w.client.ws.update({ ws: 'g-root', size_bytes: longer });
  assert.equal(same.file_system, 'grown', 'once more does no harm');
  assert.equal((await w.client.ws.update({ ws: 'data', size_bytes: 4 * SMALL })).file_system, 'not_mounted');
  await w.client.vm.pause({ vm: 'g' });
  await rejects(w.client.ws.update({ ws: 'g-root', size_bytes: 2 * longer }), 'bad_state', /its VM 'g' is paused/);
  await w.client.vm.delete({ vm: 'g' });
  await w.client.ws.remove({ ws: 'data' });
  await nothingLeft(w);
});

test('a VMM that does not take the length is no failure: the guest has it at its next start', async () => {
  await s.behave({ REFUSE: vmm === 'qemu' ? 'block_resize' : 'PATCH /drives/disk0' });
  const vm = await create('r');
  await w.client.vm.start({ vm: 'r' });
  const grown = await w.client.ws.update({ ws: 'r-root', size_bytes: 64 * 1024 ** 3 });
  assert.equal(grown.file_system, 'at_next_start');
  assert.match(grown.notice ?? '', /grows at the next start of the VM\. Cannot resize a disk of VM .*refused/);
  assert.equal((await stat(disk(vm.root_ws_id))).size, 64 * 1024 ** 3);
  await s.behave();
  await w.client.vm.delete({ vm: 'r' });
  await nothingLeft(w);
});

test('a silent VMM that is to be told of a longer disk keeps nobody from deleting its VM', async () => {
  await create('silent');
  await w.client.ws.create({ name: 'read', size_bytes: SMALL });
  await w.client.ws.attach({ ws: 'read', vm: 'silent', mount: '/read', read_only: true });
  const told = await w.client.ws.update({ ws: 'read', size_bytes: 2 * SMALL });
  assert.deepEqual([told.file_system, /can only read it/.test(told.notice ?? '')], ['not_mounted', true]);
  await w.client.vm.start({ vm: 'silent' });
  const { pid } = await w.client.vm.inspect({ vm: 'silent' });
  assert.ok(pid !== null);
  process.kill(pid, 'SIGSTOP');
  const growing = w.client.ws.update({ ws: 'silent-root', size_bytes: 64 * 1024 ** 3 });
  await setTimeout(200);
  const before = performance.now();
  await w.client.vm.delete({ vm: 'silent' });
  assert.ok(performance.now() - before < 7000, 'sooner than the VMM is given up');
  const grown = await growing;
  assert.equal(grown.file_system, 'at_next_start');
  assert.match(grown.notice ?? '', /ended by vm\.delete/);
  await w.client.ws.remove({ ws: 'read' });
  await nothingLeft(w);
});

test('disks cannot be changed under a start, and a start waits for nobody who changes them', async () => {
  const vm = await create('busy');
  const data = await w.client.ws.create({ name: 'data', size_bytes: SMALL });
  await s.behave({ HANG: 1 });
  const start = rejects(w.client.vm.start({ vm: vm.id }), 'canceled');
  await until(w, vm.id, 'starting');
  await rejects(w.client.ws.attach({ ws: data.id, vm: vm.id }), 'busy', /vm\.start is at work on it/);
  await rejects(w.client.ws.detach({ ws: vm.root_ws_id ?? '' }), 'busy');
  const kernel = (await w.client.kernel.list({}))[0]?.id ?? '';
  await rejects(w.client.kernel.remove({ kernel }), 'in_use', /it is being read just now/);
  await s.behave();
  await w.client.vm.stop({ vm: vm.id });
  await start;
  await w.client.vm.delete({ vm: vm.id });
  await w.client.ws.remove({ ws: data.id });
  await nothingLeft(w);
});

test('one disk, many who want it: one gets it, whoever is faster', async () => {
  const vms = await Promise.all(['v0', 'v1', 'v2', 'v3'].map(create));
  for (let round = 0; round < 5; round++) {
    const { id } = await w.client.ws.create({ size_bytes: SMALL });
    const wants = await Promise.allSettled([
      ...vms.map(vm => w.client.ws.attach({ ws: id, vm: vm.id })),
      w.client.vm.create({ name: 'new', ws: id }),
      w.client.ws.remove({ ws: id }),
    ]);
    assert.equal(wants.filter(r => r.status === 'fulfilled').length, 1, JSON.stringify(wants));
    for (const r of wants) {
      if (r.status === 'rejected') assert.ok(r.reason instanceof Fault && /in_use|not_found/.test(r.reason.code));
    }
    const ws = (await w.client.ws.list({})).find(one => one.id === id);
    if (ws !== undefined) assert.notEqual(ws.vm_id, null);
    if (ws === undefined) assert.ok(!(await readdir(join(w.data_dir, 'workspaces'))).includes(id));
    const made = (await w.client.vm.list({})).find(vm => vm.name === 'new');
    if (made !== undefined) await w.client.vm.delete({ vm: made.id });
    else if (ws !== undefined) await w.client.ws.detach({ ws: id });
    if (ws !== undefined) await w.client.ws.remove({ ws: id });
  }
  for (const vm of vms) await w.client.vm.delete({ vm: vm.id });
  assert.deepEqual(await w.client.ws.list({}), []);
  await nothingLeft(w);
});

test('an image and its clones race: no clone without an image, no image removed under one', async () => {
  const clones = Array.from({ length: 4 }, (_, i) =>
    i % 2 === 0 ? w.client.vm.create({ name: `r${i}` }) : w.client.ws.create({ image: 'debian' }),
  );
  const all = await Promise.allSettled([...clones, w.client.image.remove({ image: 'debian' })]);
  const ws = await w.client.ws.list({});
  assert.equal((await w.client.image.list({})).length, ws.length === 0 ? 0 : 1);
  for (const r of all) {
    if (r.status === 'rejected') assert.ok(/in_use|not_found/.test(r.reason.code), String(r.reason));
  }
  for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
  for (const one of await w.client.ws.list({})) await w.client.ws.remove({ ws: one.id });
  if ((await w.client.image.list({})).length === 1) await w.client.image.remove({ image: 'debian' });
  assert.deepEqual(await readdir(join(w.data_dir, 'images')), []);
  await nothingLeft(w);
});

test('a kernel that a VM names stays; another goes with its initramfs', async () => {
  const kernel = (await w.client.kernel.list({}))[0];
  assert.ok(kernel);
  const root = await w.client.ws.create({ size_bytes: SMALL });
  await w.client.vm.create({ name: 'named', ws: root.id, kernel: kernel.version });
  await rejects(w.client.kernel.remove({ kernel: kernel.id }), 'in_use', /VM 'named' uses it/);
  await w.client.vm.start({ vm: 'named' });
  assert.equal((await readdir(join(w.data_dir, 'initrd'))).length, 1);
  await w.client.vm.delete({ vm: 'named' });
  await w.client.kernel.remove({ kernel: kernel.id });
  for (const dir of ['kernels', 'initrd']) assert.deepEqual(await readdir(join(w.data_dir, dir)), []);
  await w.client.vm.create({ name: 'bare', ws: root.id });
  await rejects(w.client.vm.start({ vm: 'bare' }), 'not_found', /there is no kernel/);
  await w.client.vm.delete({ vm: 'bare' });
  await w.client.ws.remove({ ws: root.id });
  await nothingLeft(w);
});
