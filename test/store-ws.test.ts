/** The order of a VM's disks, as it is kept and as an older database gets it. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { MAX_DATA_DISKS, type Workspace } from '../src/api/ws.ts';
import { MIGRATIONS } from '../src/store/migrations.ts';
import { openStore } from '../src/store/open.ts';
import type { NewVm, StateStore } from '../src/store/store.ts';

const idOf = (prefix: string, n: number) => `${prefix}_01jzz${String(n).padStart(21, '0')}`;
const ws = (n: number) => idOf('ws', n);
const vmOf = (n: number): NewVm => ({
  ...blankVm(vmOps['vm.create'].input.parse({ name: `vm${n}` }), idOf('vm', n), 1000 + n),
  run: null,
  env: {},
  provision_run: null,
});
const wsOf = (n: number): Workspace => ({
  ...{ id: ws(n), name: `ws${n}`, image_id: null, source_ws_id: null, size_bytes: 1024, owned: false },
  ...{ vm_id: null, role: null, position: null, mount: null, read_only: false, created_at_ms: 1000 + n },
});

const temp = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-store-ws-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

const disks = async (store: StateStore, vm: string) =>
  (await store.wsOfVm(vm)).map(one => [one.name, one.position, one.mount, one.read_only]);

test('data disks keep the order in which they were attached; one that goes lets the others move up', async () => {
  await using t = await temp();
  await using store = await openStore(t.dir);
  const vm = idOf('vm', 1);
  await store.insertVm(vmOf(1), { ws: { ...wsOf(9), owned: true } });
  for (const n of [3, 1, 2]) await store.insertWs(wsOf(n));
  await store.attachWs(ws(3), vm, { role: 'data', mount: '/data', read_only: true });
  await store.attachWs(ws(1), vm, { role: 'data' });
  await assert.rejects(store.attachWs(ws(2), vm, { role: 'data', mount: '/data' }), {
    code: 'in_use',
    message: "Cannot attach workspace 'ws2': VM 'vm1' has 'ws3' at /data.",
  });
  await store.attachWs(ws(2), vm, { role: 'data', mount: '/srv' });
  const all = [
    ['ws9', 0, null, false],
    ['ws3', 1, '/data', true],
    ['ws1', 2, null, false],
    ['ws2', 3, '/srv', false],
  ];
  assert.deepEqual(await disks(store, vm), all);
  const free = await store.detachWs(ws(3));
  assert.deepEqual([free.position, free.mount, free.read_only], [null, null, false]);
  assert.deepEqual(await disks(store, vm), [all[0], ['ws1', 1, null, false], ['ws2', 2, '/srv', false]]);
  assert.equal((await store.resizeWs(ws(1), 4096)).size_bytes, 4096);
  for (let n = 10; n < 10 + MAX_DATA_DISKS - 2; n++) {
    await store.insertWs(wsOf(n));
    await store.attachWs(ws(n), vm, { role: 'data' });
  }
  await assert.rejects(store.attachWs(ws(3), vm, { role: 'data' }), {
    code: 'invalid',
    message: `Cannot attach workspace 'ws3': VM 'vm1' has ${MAX_DATA_DISKS} data disks, and more it cannot have.`,
  });
  await store.removeVm(vm, { keep_disk: false });
  assert.ok((await store.listWs()).every(one => one.position === null && one.vm_id === null && one.id !== ws(9)));
});

test('the image of a VM is that of the root that it has', async () => {
  await using t = await temp();
  await using store = await openStore(t.dir);
  const [vm, img] = [idOf('vm', 1), idOf('img', 1)];
  const sha256 = '0'.repeat(64);
  await store.insertImage({
    ...{ id: img, name: 'img', arch: 'x86_64', init: 'agent', os: 'Linux', build_id: null, rootfs_id: null },
    ...{ agent_version: null, warning: null, sha256, size_bytes: 1024, created_at_ms: 1000 },
  });
  await store.insertVm(vmOf(1), { ws: { ...wsOf(1), image_id: img } });
  await store.insertWs(wsOf(2));
  const image = async () => (await store.findVm(vm))?.image_id;
  assert.equal(await image(), img);
  await store.detachWs(ws(1));
  assert.equal(await image(), null);
  await store.attachWs(ws(2), vm, { role: 'root' });
  assert.equal(await image(), null);
  await store.detachWs(ws(2));
  await store.attachWs(ws(1), vm, { role: 'root' });
  assert.equal(await image(), img);
});

test('no state is begun where disks are that it would not know', async () => {
  await using t = await temp();
  {
    await using _store = await openStore(t.dir);
  }
  await mkdir(join(t.dir, 'workspaces', ws(1)), { recursive: true });
  {
    await using _store = await openStore(t.dir);
  }
  for (const lose of [rm, (path: string) => writeFile(path, '')]) {
    await lose(join(t.dir, 'state.db'));
    await assert.rejects(openStore(t.dir), {
      code: 'host',
      message: /missing or empty, but .*workspaces has disks \(1\)\.$/,
    });
  }
  await rm(join(t.dir, 'workspaces'), { recursive: true });
  await using _store = await openStore(t.dir);
});

test('disks of an older database get the order that they had at a start', async () => {
  await using t = await temp();
  const [first, second] = [idOf('vm', 1), idOf('vm', 2)];
  {
    await using _store = await openStore(t.dir, MIGRATIONS.slice(0, 5));
  }
  const db = new DatabaseSync(join(t.dir, 'state.db'));
  const put = (n: number, vm: string | null, role: string | null, at: number) =>
    db
      .prepare(
        'insert into workspaces (id, name, size_bytes, vm_id, role, owned, created_at_ms) values (?,?,?,?,?,0,?)',
      )
      .run(ws(n), `ws${n}`, 1024, vm, role, at);
  db.exec('begin; pragma defer_foreign_keys = on');
  for (const [n, id] of [
    [1, first],
    [2, second],
  ] as const)
    db.prepare(
      `insert into vms (id, name, state, vcpus, memory_mib, created_at_ms, vsock_cid, root_ws_id) values (?,?,'created',1,64,1,?,?)`,
    ).run(id, `vm${n}`, 3 + n, n === 1 ? ws(5) : null);
  put(5, first, 'root', 30);
  put(4, first, 'data', 20);
  put(3, first, 'data', 20);
  put(2, first, 'data', 10);
  put(1, second, 'data', 5);
  put(6, null, null, 1);
  db.exec('commit');
  db.close();
  await using store = await openStore(t.dir);
  const order = async (vm: string) => (await store.wsOfVm(vm)).map(one => [one.name, one.position]);
  assert.deepEqual(await order(first), [
    ['ws5', 0],
    ['ws2', 1],
    ['ws3', 2],
    ['ws4', 3],
  ]);
  assert.deepEqual(await order(second), [['ws1', 1]]);
  assert.equal((await store.findWs('ws6'))?.position, null);
});
