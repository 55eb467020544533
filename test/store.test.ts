/** The store through its interface, on real files. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Build } from '../src/api/build.ts';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import type { Image } from '../src/api/image.ts';
import type { Job } from '../src/api/job.ts';
import type { Kernel } from '../src/api/kernel.ts';
import type { Rootfs } from '../src/api/rootfs.ts';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import type { Workspace } from '../src/api/ws.ts';
import { lockDataDir } from '../src/store/lock.ts';
import { openStore } from '../src/store/open.ts';
import type { VmRecord } from '../src/store/store.ts';

const dataDir = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-store-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

/** The n-th ID of a kind. */
const idOf = (prefix: string, n: number) => `${prefix}_01jzz${String(n).padStart(21, '0')}`;
const HASH = 'a'.repeat(64);

const vmOf = (n: number, more: Partial<VmRecord> = {}): VmRecord => ({
  ...blankVm(vmOps['vm.create'].input.parse({ name: `vm${n}` }), idOf('vm', n), 1000 + n),
  run: null,
  env: {},
  provision_run: null,
  vsock_cid: 3,
  host_uid: null,
  ...more,
});
const wsOf = (n: number, more: Partial<Workspace> = {}): Workspace => ({
  id: idOf('ws', n),
  name: `ws${n}`,
  image_id: null,
  source_ws_id: null,
  size_bytes: 8 * 1024 ** 3,
  vm_id: null,
  role: null,
  position: null,
  mount: null,
  read_only: false,
  owned: false,
  created_at_ms: 1000 + n,
  ...more,
});
const imageOf = (n: number, more: Partial<Image> = {}): Image => ({
  id: idOf('img', n),
  name: `image${n}`,
  arch: 'x86_64',
  init: 'agent',
  os: 'Debian GNU/Linux 12 (bookworm)',
  build_id: null,
  rootfs_id: null,
  agent_version: '0.1.0',
  warning: null,
  sha256: HASH,
  size_bytes: 4096,
  created_at_ms: 1000 + n,
  ...more,
});
const kernelOf = (n: number, version: string): Kernel => ({
  id: idOf('krn', n),
  version,
  arch: 'x86_64',
  provider: 'debian',
  source: 'linux-image-cloud-amd64 1',
  proofs: ['apt'],
  sha256: HASH,
  size_bytes: 1,
  is_default: false,
  modules_sha256: HASH,
  modules_size_bytes: 2,
  created_at_ms: 1000 + n,
});
const rootfsOf = (n: number, version: string): Rootfs => ({
  id: idOf('rfs', n),
  distro: 'debian',
  version,
  arch: 'x86_64',
  provider: 'debian-rootfs',
  source: 'debian bookworm',
  proofs: ['apt'],
  sha256: String(n).repeat(64),
  size_bytes: 3,
  is_default: false,
  created_at_ms: 1000 + n,
});
const jobOf = (n: number, more: Partial<Job> = {}): Job => ({
  id: idOf('job', n),
  kind: 'kernel.download',
  subject: 'debian:12',
  state: 'queued',
  progress: null,
  error: null,
  result_id: null,
  created_at_ms: 1000 + n,
  started_at_ms: null,
  ended_at_ms: null,
  ...more,
});

const fails = (promise: Promise<unknown>, code: FaultCode, message?: string) =>
  assert.rejects(promise, error => {
    assert.ok(error instanceof Fault, String(error));
    assert.equal(error.code, code, error.message);
    if (message !== undefined) assert.equal(error.message, message);
    return true;
  });

test('a VM comes back as it was written, by name and by ID, also after a reopen', async () => {
  await using temp = await dataDir();
  const { host_uid: _, ...vm } = vmOf(1, {
    name: 'web',
    guest: 'ready',
    run: { pid: 42, start_ticks: 123_456, boot_id: 'b' },
    pid: 42,
    guest_facts: {
      agent_version: '1',
      kernel: '6.1',
      os: 'Debian',
      hostname: 'web',
      init: 'agent',
      boot_id: 'g',
      problems: [],
    },
    error: { at_ms: 1, code: 'vmm', detail: 'it\'s \u{1f600} "quoted"', hint: 'try' },
    last_exit: { at_ms: 2, reason: 'gone', exit_code: null, signal: 'KILL', console_tail: ['a', '', 'b'] },
  });
  {
    await using store = await openStore(temp.dir);
    assert.deepEqual(await store.insertVm(vm, {}), { ...vm, host_uid: null });
    assert.equal(await store.findVm('nobody'), undefined);
    assert.equal(await store.findVm(idOf('vm', 9)), undefined);
  }
  await using store = await openStore(temp.dir);
  assert.deepEqual(await store.findVm('web'), { ...vm, host_uid: null });
  assert.deepEqual(await store.findVm(vm.id), { ...vm, host_uid: null });
});

test('the database and its log are for their owner alone', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.insertJob(jobOf(1));
  for (const file of ['state.db', 'state.db-wal', 'state.db-shm'])
    assert.equal((await stat(join(temp.dir, file))).mode & 0o777, 0o600, file);
});

test('lists are newest first, then by ID, and filter', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  for (const n of [2, 1, 3]) await store.insertVm(vmOf(n, { created_at_ms: n === 1 ? 5 : 7 }), {});
  assert.deepEqual(
    (await store.listVms()).map(vm => vm.name),
    ['vm3', 'vm2', 'vm1'],
  );
  await store.transitionVm(idOf('vm', 2), { to: 'starting', why: 'asked', actor: 'api' });
  assert.deepEqual(
    (await store.listVms({ state: 'starting' })).map(vm => vm.name),
    ['vm2'],
  );
  for (const n of [1, 2, 3]) await store.insertImage(imageOf(n));
  assert.deepEqual(
    (await store.listImages()).map(image => image.name),
    ['image3', 'image2', 'image1'],
  );
});

test('a name that is taken: exists, and nothing else of the call is kept', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.insertVm(vmOf(1, { name: 'web' }), { ws: wsOf(1, { owned: true }) });
  await fails(store.insertVm(vmOf(2, { name: 'web' }), { ws: wsOf(2) }), 'exists', "VM 'web' exists already.");
  await fails(store.insertVm(vmOf(2), { ws: wsOf(2, { name: 'ws1' }) }), 'exists', "Workspace 'ws1' exists already.");
  assert.equal((await store.listVms()).length, 1);
  assert.equal((await store.listWs()).length, 1);
  await store.insertImage(imageOf(1, { name: 'base' }));
  await fails(store.insertImage(imageOf(2, { name: 'base' })), 'exists', "Image 'base' exists already.");
  await store.insertVm(vmOf(3), {});
  await fails(store.patchVm(idOf('vm', 3), { name: 'web' }), 'exists', "VM 'web' exists already.");
});

test('transitions: only those of the table, each with its history row', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { id } = await store.insertVm(vmOf(1, { name: 'web' }), {});
  await fails(
    store.transitionVm(id, { to: 'running', why: 'x', actor: 'api' }),
    'bad_state',
    "Cannot record VM 'web' as running: it is created.",
  );
  await store.transitionVm(id, { to: 'starting', why: 'asked', actor: 'api', patch: { started_at_ms: 5 } });
  const vm = await store.transitionVm(id, { to: 'running', why: 'it answers', actor: 'daemon', patch: { pid: 7 } });
  assert.deepEqual([vm.state, vm.pid, vm.started_at_ms], ['running', 7, 5]);
  assert.deepEqual(await store.findVm(id), vm);
  await fails(
    store.transitionVm(id, { to: 'starting', why: 'x', actor: 'api' }),
    'bad_state',
    "Cannot start VM 'web': it is running.",
  );
  const history = await store.vmHistory(id, 10);
  assert.deepEqual(
    history.map(h => [h.from, h.to, h.why, h.actor]),
    [
      ['starting', 'running', 'it answers', 'daemon'],
      ['created', 'starting', 'asked', 'api'],
      [null, 'created', 'created', 'api'],
    ],
  );
  assert.equal((await store.vmHistory(id, 1)).length, 1);
  await fails(store.transitionVm(idOf('vm', 9), { to: 'starting', why: 'x', actor: 'api' }), 'not_found');
});

test('a patch that fails its schema changes neither state nor history', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { id } = await store.insertVm(vmOf(1), {});
  const step = { to: 'starting', why: 'x', actor: 'api', patch: { pid: Number.NaN } } as const;
  await assert.rejects(store.transitionVm(id, step));
  assert.equal((await store.findVm(id))?.state, 'created');
  assert.equal((await store.vmHistory(id, 10)).length, 1);
});

test('50 callers start one VM: one legal winner, 49 refusals', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { id } = await store.insertVm(vmOf(1), {});
  const calls = Array.from({ length: 50 }, (_, n) =>
    store.transitionVm(id, { to: 'starting', why: `caller ${n}`, actor: 'api' }),
  );
  const reads = Array.from({ length: 50 }, () => store.findVm(id));
  const results = await Promise.allSettled(calls);
  await Promise.all(reads);
  assert.equal(results.filter(r => r.status === 'fulfilled').length, 1);
  for (const r of results) if (r.status === 'rejected') assert.equal((r.reason as Fault).code, 'bad_state');
  assert.equal((await store.vmHistory(id, 100)).length, 2);
});

test('a close waits for the calls that were made before it', async () => {
  await using temp = await dataDir();
  const store = await openStore(temp.dir);
  const calls = Array.from({ length: 20 }, (_, n) => store.insertJob(jobOf(n)));
  await store[Symbol.asyncDispose]();
  await store[Symbol.asyncDispose]();
  await Promise.all(calls);
  await using again = await openStore(temp.dir);
  assert.equal((await again.listJobs({ limit: 100 })).length, 20);
});

test('host uids are unique and the lowest free one', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const made = await Promise.all([1, 2, 3].map(n => store.insertVm(vmOf(n), { first_host_uid: 70_000 })));
  assert.deepEqual(made.map(vm => vm.host_uid).sort(), [70_000, 70_001, 70_002]);
  const middle = made.find(vm => vm.host_uid === 70_001);
  await store.removeVm(middle?.id ?? '', { keep_disk: false });
  assert.equal((await store.insertVm(vmOf(4), { first_host_uid: 70_000 })).host_uid, 70_001);
  assert.equal((await store.insertVm(vmOf(5), {})).host_uid, null);
});

test('a workspace is attached to one VM at a time, a VM has one root', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  for (const n of [1, 2]) await store.insertVm(vmOf(n), {});
  for (const n of [1, 2, 3]) await store.insertWs(wsOf(n));
  const [vm1, vm2, ws1, ws2, ws3] = [idOf('vm', 1), idOf('vm', 2), idOf('ws', 1), idOf('ws', 2), idOf('ws', 3)];
  const attached = await store.attachWs(ws1, vm1, { role: 'root' });
  assert.deepEqual([attached.vm_id, attached.role, attached.owned], [vm1, 'root', false]);
  assert.equal((await store.findVm(vm1))?.root_ws_id, ws1);
  await fails(
    store.attachWs(ws1, vm2, { role: 'root' }),
    'in_use',
    "Cannot attach workspace 'ws1': it is attached to VM 'vm1'.",
  );
  await fails(
    store.attachWs(ws2, vm1, { role: 'root' }),
    'in_use',
    "Cannot attach workspace 'ws2' as root: VM 'vm1' has 'ws1' as root.",
  );
  await store.attachWs(ws3, vm1, { role: 'data' });
  assert.deepEqual(
    (await store.wsOfVm(vm1)).map(ws => ws.id),
    [ws1, ws3],
  );
  await fails(store.removeWs(ws1), 'in_use', "Cannot remove workspace 'ws1': it is attached to VM 'vm1'.");
  assert.equal((await store.detachWs(ws1)).vm_id, null);
  assert.equal((await store.findVm(vm1))?.root_ws_id, null);
  await fails(store.detachWs(ws1), 'bad_state', "Cannot detach workspace 'ws1': it is not attached.");
  await store.removeWs(ws1);
  await fails(store.removeWs(ws1), 'not_found');
  await fails(store.attachWs(ws2, idOf('vm', 9), { role: 'data' }), 'not_found');
  const race = await Promise.allSettled([vm1, vm2, vm1, vm2].map(vm => store.attachWs(ws2, vm, { role: 'root' })));
  assert.equal(race.filter(r => r.status === 'fulfilled').length, 1);
});

test('a VM made with a new or an existing root workspace is attached in the same step', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const made = await store.insertVm(vmOf(1), { ws: wsOf(1, { owned: true }) });
  assert.equal(made.root_ws_id, idOf('ws', 1));
  const root = await store.findWs('ws1');
  assert.deepEqual([root?.vm_id, root?.role, root?.owned], [made.id, 'root', true]);
  await store.insertWs(wsOf(2));
  assert.equal((await store.insertVm(vmOf(2, { root_ws_id: idOf('ws', 2) }), {})).root_ws_id, idOf('ws', 2));
  assert.equal((await store.findWs('ws2'))?.owned, false);
  await fails(store.insertVm(vmOf(3, { root_ws_id: idOf('ws', 2) }), {}), 'in_use');
  await fails(store.insertVm(vmOf(3, { root_ws_id: idOf('ws', 9) }), {}), 'not_found');
  assert.equal((await store.listVms()).length, 2);
});

test('a removed VM takes its history and what it owns; the rest is detached', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.insertVm(vmOf(1), { ws: wsOf(1, { owned: true }) });
  await store.insertWs(wsOf(2));
  await store.attachWs(idOf('ws', 2), idOf('vm', 1), { role: 'data' });
  const removed = await store.removeVm(idOf('vm', 1), { keep_disk: false });
  assert.deepEqual(
    removed.map(ws => ws.name),
    ['ws1'],
  );
  assert.deepEqual(
    (await store.listWs()).map(ws => [ws.name, ws.vm_id, ws.role, ws.owned]),
    [['ws2', null, null, false]],
  );
  assert.deepEqual(await store.vmHistory(idOf('vm', 1), 10), []);
  await fails(store.removeVm(idOf('vm', 1), { keep_disk: false }), 'not_found');

  await store.insertVm(vmOf(3), { ws: wsOf(3, { owned: true }) });
  assert.deepEqual(await store.removeVm(idOf('vm', 3), { keep_disk: true }), []);
  const kept = await store.findWs('ws3');
  assert.deepEqual([kept?.vm_id, kept?.owned], [null, false]);
});

test('what is in use is not removed', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.insertImage(imageOf(1, { name: 'base' }));
  await store.assets.kernel.insert(kernelOf(1, '6.1.0'));
  await fails(store.insertWs(wsOf(1, { image_id: idOf('img', 9) })), 'not_found');
  await store.insertWs(wsOf(1, { image_id: idOf('img', 1) }));
  await store.insertVm(vmOf(1, { kernel_id: idOf('krn', 1) }), {});
  await fails(store.insertVm(vmOf(2, { kernel_id: idOf('krn', 9) }), {}), 'not_found');
  await fails(store.removeImage(idOf('img', 1)), 'in_use', "Cannot remove image 'base': workspace 'ws1' came from it.");
  await fails(store.assets.kernel.remove(idOf('krn', 1)), 'in_use', "Cannot remove kernel '6.1.0': VM 'vm1' uses it.");
  await store.removeWs(idOf('ws', 1));
  await store.removeImage(idOf('img', 1));
  await store.patchVm(idOf('vm', 1), { kernel_id: null });
  await store.assets.kernel.remove(idOf('krn', 1));
  await fails(store.removeImage(idOf('img', 1)), 'not_found');
  await fails(store.assets.kernel.remove(idOf('krn', 1)), 'not_found');
});

test('an image that is to go because a newer one is there stays when the newer one went first', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const build = (n: number): Build => ({
    ...{
      id: idOf('bld', n),
      image_name: `image${n}`,
      template_id: idOf('tpl', 1),
      template: 'tpl',
      template_version: n,
    },
    ...{ source_type: 'rootfs', source: 'debian:12', sha256: null, overlays: [], size_bytes: null, init: 'auto' },
    ...{ environment: {}, base_image_id: null, rootfs_id: null, state: 'building', job_id: idOf('job', n) },
    ...{ image_id: null, inputs_sha256: null, image_sha256: null, error: null, created_at_ms: n, ended_at_ms: null },
  });
  for (const n of [1, 2, 3]) {
    await store.insertBuild(build(n));
    await store.finishBuild(idOf('bld', n), imageOf(n, { build_id: idOf('bld', n) }), HASH, 2000 + n);
  }
  await store.insertImage(imageOf(4));
  const outdated = (n: number) => store.removeImage(idOf('img', n), { outdated: true });
  const newest = (n: number) => `Cannot remove image 'image${n}': no image of its template is newer.`;
  assert.deepEqual(
    (await store.imagesOfTemplates()).map(one => one.image.name),
    ['image3', 'image2', 'image1'],
  );
  await outdated(2);
  await store.removeImage(idOf('img', 3));
  for (const n of [1, 4]) await fails(outdated(n), 'in_use', newest(n));
  await fails(outdated(2), 'not_found');
});

test('assets are found by ID and by version, the newest of a version', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const rebuilt = { ...kernelOf(2, '6.1.0'), sha256: 'b'.repeat(64) };
  const first = await store.assets.kernel.insert(kernelOf(1, '6.1.0'));
  // two downloads that end at once make one kernel; a package that was rebuilt makes another
  const [one, other] = await Promise.all(
    [3, 4].map(n => store.assets.kernel.insert({ ...rebuilt, id: idOf('krn', n) })),
  );
  assert.deepEqual([one, other], [{ ...rebuilt, id: idOf('krn', 3) }, one]);
  const again = { ...kernelOf(5, '6.1.0'), created_at_ms: first.created_at_ms };
  assert.deepEqual(await store.assets.kernel.insert(again), first);
  assert.equal((await store.assets.kernel.list()).length, 2);
  for (const n of [1, 2]) await store.assets.rootfs.insert(rootfsOf(n, '12'));
  assert.equal((await store.assets.kernel.find('6.1.0'))?.id, idOf('krn', 3));
  assert.deepEqual(await store.assets.kernel.find(idOf('krn', 1)), kernelOf(1, '6.1.0'));
  assert.equal((await store.assets.rootfs.find('debian:12'))?.id, idOf('rfs', 2));
  assert.deepEqual(await store.assets.rootfs.find(idOf('rfs', 1)), rootfsOf(1, '12'));
  assert.equal((await store.assets.rootfs.find('debian'))?.id, idOf('rfs', 2));
  assert.equal(await store.assets.rootfs.find('alpine'), undefined);
  assert.equal(await store.assets.rootfs.find('debian:13'), undefined);
  await store.assets.rootfs.remove(idOf('rfs', 2));
  await fails(store.assets.rootfs.remove(idOf('rfs', 2)), 'not_found');
  assert.equal((await store.assets.rootfs.list()).length, 1);
});

test('jobs: update, filter, interrupt, prune', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  for (const n of [1, 2, 3, 4, 5]) await store.insertJob(jobOf(n));
  const progress = { stage: 'download', done: 1, total: null, unit: 'bytes' as const };
  assert.deepEqual((await store.updateJob(idOf('job', 1), { state: 'running', progress })).progress, progress);
  for (const n of [2, 3, 4]) await store.updateJob(idOf('job', n), { state: 'succeeded', ended_at_ms: 2000 });
  assert.equal((await store.listJobs({ limit: 2 })).length, 2);
  assert.deepEqual(
    (await store.listJobs({ state: 'succeeded', limit: 100 })).map(job => job.id),
    [4, 3, 2].map(n => idOf('job', n)),
  );
  assert.deepEqual(await store.pruneJobs(2), [idOf('job', 2)]);
  const interrupted = await store.interruptJobs(3000);
  assert.deepEqual(
    interrupted.map(job => [job.id, job.state, job.ended_at_ms]),
    [5, 1].map(n => [idOf('job', n), 'interrupted', 3000]),
  );
  assert.deepEqual(await store.interruptJobs(4000), []);
  assert.deepEqual((await store.findJob(idOf('job', 1)))?.progress, progress);
  assert.equal(await store.findJob(idOf('job', 2)), undefined);
  await fails(store.updateJob(idOf('job', 2), { state: 'failed' }), 'not_found');
});

test('a data directory that cannot be one is a fault of the host', async () => {
  await using temp = await dataDir();
  await writeFile(join(temp.dir, 'file'), '');
  for (const dir of [join(temp.dir, 'file'), join(temp.dir, 'file/below')]) {
    await fails(openStore(dir), 'host');
    await fails(lockDataDir(dir), 'host');
  }
});

test('whatever is attached and removed in whatever order, VMs and workspaces agree', async () => {
  const one = fc.integer({ min: 1, max: 3 });
  const step = fc.oneof(
    fc.record({ verb: fc.constant('insertVm' as const), vm: one, ws: fc.option(one), owned: fc.boolean() }),
    fc.record({ verb: fc.constant('insertWs' as const), ws: one }),
    fc.record({ verb: fc.constant('attach' as const), vm: one, ws: one, role: fc.constantFrom('root', 'data') }),
    fc.record({ verb: fc.constant('detach' as const), ws: one }),
    fc.record({ verb: fc.constant('removeVm' as const), vm: one, keep_disk: fc.boolean() }),
    fc.record({ verb: fc.constant('removeWs' as const), ws: one }),
  );
  await using temp = await dataDir();
  let run = 0;
  const holds = async (steps: ReturnType<typeof step.generate>['value'][]) => {
    await using store = await openStore(join(temp.dir, String(run++)));
    const all = steps.map(s => {
      if (s.verb === 'insertVm')
        return store.insertVm(vmOf(s.vm), s.ws === null ? {} : { ws: wsOf(s.ws, { owned: s.owned }) });
      if (s.verb === 'insertWs') return store.insertWs(wsOf(s.ws));
      if (s.verb === 'attach') return store.attachWs(idOf('ws', s.ws), idOf('vm', s.vm), { role: s.role });
      if (s.verb === 'detach') return store.detachWs(idOf('ws', s.ws));
      if (s.verb === 'removeVm') return store.removeVm(idOf('vm', s.vm), { keep_disk: s.keep_disk });
      return store.removeWs(idOf('ws', s.ws));
    });
    for (const result of await Promise.allSettled<unknown>(all))
      if (result.status === 'rejected') assert.ok(result.reason instanceof Fault, String(result.reason));
    const [vms, workspaces] = [await store.listVms(), await store.listWs()];
    for (const vm of vms) {
      const roots = workspaces.filter(ws => ws.vm_id === vm.id && ws.role === 'root').map(ws => ws.id);
      assert.deepEqual(roots, vm.root_ws_id === null ? [] : [vm.root_ws_id]);
      assert.equal((await store.vmHistory(vm.id, 10)).length, 1);
      const places = (await store.wsOfVm(vm.id)).filter(ws => ws.role === 'data').map(ws => ws.position);
      assert.deepEqual(
        places,
        places.map((_, i) => i + 1),
        'without gaps',
      );
    }
    for (const ws of workspaces) {
      assert.ok(
        ws.vm_id === null ? ws.role === null && ws.position === null && !ws.owned : vms.some(vm => vm.id === ws.vm_id),
      );
    }
  };
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 25 }), holds), { numRuns: 40 });
});

test('a note is what was written last; the history keeps the newest thousand', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  assert.equal(await store.findNote('boot'), undefined);
  await store.writeNote('boot', 'one');
  await store.writeNote('boot', 'two');
  assert.equal(await store.findNote('boot'), 'two');
  const { id } = await store.insertVm(vmOf(1), {});
  for (let i = 0; i < 1010; i++) {
    const to = i % 2 === 0 ? 'starting' : 'failed';
    await store.transitionVm(id, { to, why: `${i}`, actor: 'api' });
  }
  const kept = await store.vmHistory(id, 10_000);
  assert.deepEqual([kept.length, kept[0]?.why, kept.at(-1)?.why], [1000, '1009', '10']);
});

test('a list read again: what changed is new, what did not is the same record, and nobody can write to it', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  for (const n of [1, 2, 3]) await store.insertVm(vmOf(n, { tags: { team: `t${n}` } }), {});
  const first = await store.listVms();
  await store.patchVm(idOf('vm', 2), { vcpus: 7 });
  await store.insertVm(vmOf(4), {});
  await store.removeVm(idOf('vm', 1), { keep_disk: false });
  const second = await store.listVms();
  assert.deepEqual(
    second.map(vm => [vm.name, vm.vcpus, first.includes(vm)]),
    [
      ['vm4', 2, false],
      ['vm3', 2, true],
      ['vm2', 7, false],
    ],
  );
  const [, third] = second;
  assert.throws(() => Object.assign(third ?? {}, { vcpus: 1 }), TypeError);
  assert.throws(() => Object.assign(third?.tags ?? {}, { team: 'x' }), TypeError);
  const raw = new DatabaseSync(join(temp.dir, 'state.db'));
  raw.exec("update vms set tags = '{}' where name = 'vm3'");
  raw.close();
  assert.deepEqual((await store.listVms())[1]?.tags, {}, 'whoever wrote it');
  await store.patchVm(idOf('vm', 2), { vcpus: 2 });
  assert.deepEqual(await store.listVms({ state: 'created' }), await store.listVms());
});

test('a damaged record is named, and never passed on', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.insertVm(vmOf(1), {});
  const raw = new DatabaseSync(join(temp.dir, 'state.db'));
  raw.exec("update vms set state = 'flying'");
  raw.close();
  await fails(store.findVm('vm1'), 'internal', `Cannot read VM '${idOf('vm', 1)}': its record is damaged.`);
});
