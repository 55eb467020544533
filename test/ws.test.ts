/** Disks and assets through the door: what is used stays, what belongs to a VM goes with it, and nobody gets between. */
import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { nothingLeft, rejects, staged, until } from './kit/behave.ts';

const SMALL = 16 * 1024 * 1024;
const s = await staged();
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
  const image = await w.client.image.inspect({ image: 'debian' });
  const clone = await w.client.ws.create({ image: image.id, size_bytes: image.size_bytes + SMALL });
  assert.equal((await stat(disk(clone.id))).size, image.size_bytes + SMALL);
  assert.match(clone.name, /^ws-/);
  await rejects(w.client.image.remove({ image: 'debian' }), 'in_use', /workspace 'ws-.*' came from it/);
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
  assert.equal((await w.client.ws.get({ ws: 'data' })).vm_id, null, 'what was attached is only detached');
  await w.client.vm.delete({ vm: 'a', keep_disk: true });
  const kept = await w.client.ws.get({ ws: a.root_ws_id ?? '' });
  assert.deepEqual([kept.vm_id, kept.owned], [null, false]);
  await stat(disk(kept.id));
  const again = await w.client.vm.create({ name: 'again', ws: kept.name });
  assert.deepEqual([again.root_ws_id, again.image_id], [kept.id, kept.image_id]);
  await w.client.vm.start({ vm: 'again' });
  await w.client.vm.delete({ vm: 'again' });
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
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
