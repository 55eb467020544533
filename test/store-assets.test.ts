/** Assets and providers in the store: what is one and the same, what is the default, what comes with Nexus, and what was there before. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import type { Firecracker } from '../src/api/firecracker.ts';
import type { Kernel } from '../src/api/kernel.ts';
import type { Provider } from '../src/api/provider.ts';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { newId } from '../src/core/ids.ts';
import { hostArch } from '../src/lib/arch.ts';
import { MIGRATIONS } from '../src/store/migrations.ts';
import { openStore } from '../src/store/open.ts';
import type { ShippedProvider, StateStore } from '../src/store/store.ts';

const dataDir = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-store-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

const fails = (asked: Promise<unknown>, code: FaultCode, words: RegExp): Promise<void> =>
  assert.rejects(asked, error => error instanceof Fault && error.code === code && words.test(error.message));

let clock = 1000;
const base = (version: string, hash: string) => ({
  version,
  arch: 'x86_64' as const,
  provider: 'anvil',
  source: 'https://example.org/x',
  proofs: ['pgp' as const, 'sha256' as const],
  sha256: hash.repeat(64),
  size_bytes: 1,
  is_default: false,
  created_at_ms: clock++,
});
const kernelOf = (version: string, hash = 'a'): Kernel => ({
  id: newId('krn'),
  ...base(version, hash),
  modules_sha256: null,
  modules_size_bytes: null,
});
const firecrackerOf = (version: string, hash = 'a'): Firecracker => ({
  id: newId('fcr'),
  ...base(version, hash),
  jailer_sha256: 'b'.repeat(64),
  jailer_size_bytes: 2,
});

test('an asset is found by ID, version and series; a series is not a beginning of a number', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { kernel } = store.assets;
  const [old, young, other] = [kernelOf('6.1.5'), kernelOf('6.1.9', 'b'), kernelOf('6.12.1', 'c')];
  for (const one of [young, old, other]) await kernel.insert(one);
  assert.deepEqual(await kernel.find('6.1.9'), young);
  assert.deepEqual(await kernel.find(old.id), old);
  assert.equal((await kernel.find('6.1'))?.version, '6.1.9', 'the one that came last');
  assert.equal((await kernel.find('6.12'))?.id, other.id);
  assert.equal(await kernel.find('6.'), undefined);
  assert.equal(await kernel.find('5'), undefined);
});

test('the same content again is one record, which says how it was proven best', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { kernel } = store.assets;
  const file = { provider: null, source: '/tmp/vmlinux', proofs: ['none' as const] };
  const kept = await kernel.insert({ ...kernelOf('6.1.5'), ...file });
  await kernel.setDefault(kept.id, true);
  const again = async (more: Partial<Kernel>): Promise<Kernel> => {
    const now = await kernel.insert({ ...kernelOf('6.1.5'), ...more });
    assert.deepEqual(await kernel.list(), [now], 'what is given is what is on disk');
    assert.deepEqual([now.id, now.is_default], [kept.id, true]);
    return now;
  };
  const says = ({ provider, source, proofs }: Kernel) => [provider, source, proofs];
  const better = await again({});
  assert.deepEqual(says(better), ['anvil', 'https://example.org/x', ['pgp', 'sha256']]);
  assert.ok(better.created_at_ms > kept.created_at_ms);
  assert.deepEqual(await again(file), better, 'what proves less changes nothing');
  assert.deepEqual(await again({ provider: 'own', proofs: ['sha256'] }), better);
  assert.deepEqual(await again({ provider: null, source: 'https://example.org/y' }), better, 'as well, but of nobody');
  assert.deepEqual(says(await again({ provider: 'debian', source: 'apt', proofs: ['apt'] })), [
    'debian',
    'apt',
    ['apt'],
  ]);
});

test("a reference means the one for this host's processor, whichever came last", async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { kernel } = store.assets;
  const arch = hostArch();
  if (arch === undefined) throw new Error('no guest runs on this processor');
  const other = arch === 'x86_64' ? 'aarch64' : 'x86_64';
  const own = await kernel.insert({ ...kernelOf('6.18.9'), arch });
  const foreign = await kernel.insert({ ...kernelOf('6.18.9', 'b'), arch: other });
  const only = await kernel.insert({ ...kernelOf('6.18.10', 'c'), arch: other });
  assert.deepEqual(await kernel.find('6.18.9'), own);
  assert.deepEqual(await kernel.find('6.18'), own);
  assert.deepEqual(await kernel.find('6.18.10'), only, 'where there is no other');
  assert.deepEqual(await kernel.find(foreign.id), foreign);
});

test('one default of a kind, which stays until it is no more the default', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const { firecracker } = store.assets;
  const [one, two] = [firecrackerOf('1.12.0'), firecrackerOf('1.13.0', 'c')];
  for (const each of [one, two]) await firecracker.insert(each);
  assert.equal((await firecracker.setDefault(one.id, true)).is_default, true);
  await firecracker.setDefault(two.id, true);
  assert.deepEqual(
    (await firecracker.list()).map(f => [f.version, f.is_default]),
    [
      ['1.13.0', true],
      ['1.12.0', false],
    ],
  );
  await fails(firecracker.remove(two.id), 'in_use', /Cannot remove Firecracker '1\.13\.0': it is the default/);
  await firecracker.setDefault(two.id, false);
  await firecracker.remove(two.id);
  await fails(firecracker.remove(two.id), 'not_found', /There is no firecracker/);
  await fails(firecracker.setDefault(two.id, true), 'not_found', /./);
});

test('a Firecracker and a kernel that run a VM stay', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const one = await store.assets.firecracker.insert(firecrackerOf('1.12.0'));
  const kernel = await store.assets.kernel.insert(kernelOf('6.1.5'));
  const vm = {
    ...blankVm(vmOps['vm.create'].input.parse({ name: 'web' }), newId('vm'), 1),
    kernel_id: null,
    run: null,
    env: {},
    provision_run: null,
  };
  await store.insertVm(vm, {});
  const run = { pid: 2, start_ticks: 3, boot_id: 'b' };
  await store.patchVm(vm.id, { run: { ...run, firecracker_id: one.id, kernel_id: kernel.id } });
  await fails(store.assets.kernel.remove(kernel.id), 'in_use', /VM 'web' uses it/);
  assert.equal((await store.findVm('web'))?.run?.firecracker_id, one.id);
  await fails(store.assets.firecracker.remove(one.id), 'in_use', /VM 'web' uses it/);
  await store.patchVm(vm.id, { run });
  await store.assets.firecracker.remove(one.id);
  await store.assets.kernel.remove(kernel.id);
});

const providerOf = (name: string, more: Partial<Provider> = {}): Provider => ({
  id: newId('prv'),
  name,
  kind: 'kernel',
  type: 'url',
  config: { base: 'https://example.org' },
  pipeline: [
    { stage: 'http', url: '{base}/{version}' },
    { stage: 'sha256', expect: { url: '{base}/sums', name: 'x' } },
  ],
  keys: [],
  unverified: false,
  is_default: false,
  shipped: true,
  created_at_ms: 1,
  updated_at_ms: 1,
  ...more,
});

test('providers: the first of a kind is its default, the default stays, names are taken once', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const one = await store.insertProvider(providerOf('one'));
  assert.equal(one.is_default, true);
  const two = await store.insertProvider(providerOf('two'));
  assert.equal(two.is_default, false);
  await fails(store.insertProvider(providerOf('two')), 'exists', /Provider 'two' exists already/);
  await fails(store.removeProvider(one.id), 'in_use', /it is the default of its kind, kernel/);
  await store.setDefaultProvider(two.id);
  assert.deepEqual(
    (await store.listProviders('kernel')).map(p => [p.name, p.is_default]),
    [
      ['two', true],
      ['one', false],
    ],
  );
  await store.removeProvider(one.id);
  await fails(store.removeProvider(one.id), 'not_found', /./);
  assert.deepEqual(await store.findProvider('two'), { ...two, is_default: true });
  assert.deepEqual(await store.findProvider(two.id), await store.findProvider('two'));
});

const shippedOf = (since: number, ...names: string[]): ShippedProvider[] =>
  names.map(name => ({ ...providerOf(name, { is_default: name === 'anvil' }), since }));

const named = async (store: StateStore): Promise<[string, string | undefined, boolean][]> =>
  (await store.listProviders()).map(p => [p.name, p.config.base, p.is_default]);

test('what is shipped comes once, follows a newer Nexus, and leaves alone what a person changed or removed', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  await store.seedProviders(shippedOf(1, 'anvil', 'debian', 'third'));
  const first = await store.listProviders();
  await store.seedProviders(shippedOf(1, 'anvil', 'debian', 'third'));
  assert.deepEqual(await store.listProviders(), first, 'a second start changes nothing');
  const debian = await store.findProvider('debian');
  const third = await store.findProvider('third');
  assert.ok(debian && third);
  await store.updateProvider(debian.id, p => ({ ...p, config: { base: 'https://mine' }, shipped: false }));
  await store.removeProvider(third.id);
  const newer = [...shippedOf(1, 'anvil', 'debian', 'third'), ...shippedOf(2, 'fourth')];
  const moved = newer.map(row => ({ ...row, config: { base: 'https://new' }, updated_at_ms: 5 }));
  await store.seedProviders(moved);
  assert.deepEqual(await named(store), [
    ['anvil', 'https://new', true],
    ['debian', 'https://mine', false],
    ['fourth', 'https://new', false],
  ]);
  assert.equal((await store.findProvider('anvil'))?.id, first.find(p => p.name === 'anvil')?.id);
});

test('a store of before has its kernels and archives, proven by apt, and its VMs have their kernel', async () => {
  await using temp = await dataDir();
  const [krn, rfs, vm] = [newId('krn'), newId('rfs'), newId('vm')];
  {
    await using _third = await openStore(temp.dir, MIGRATIONS.slice(0, 3));
  }
  const raw = new DatabaseSync(join(temp.dir, 'state.db'));
  const hash = 'a'.repeat(64);
  raw.exec(`
    insert into kernels values ('${krn}', '6.1.0', 'x86_64', 'debian', 'linux-image 1', '${hash}', 5, '${hash}', 6, 7);
    insert into rootfs values ('${rfs}', 'debian', '12', 'x86_64', 'debian', '${hash}', 8, 9);
    insert into vms (id, name, state, vcpus, memory_mib, kernel_id, created_at_ms, vsock_cid)
      values ('${vm}', 'web', 'created', 1, 64, '${krn}', 1, 3);
  `);
  raw.close();
  await using store = await openStore(temp.dir);
  const common = { arch: 'x86_64', proofs: ['apt'], sha256: hash, is_default: false };
  assert.deepEqual(await store.assets.kernel.list(), [
    {
      ...{ id: krn, version: '6.1.0', ...common, provider: 'debian', source: 'linux-image 1', size_bytes: 5 },
      ...{ modules_sha256: hash, modules_size_bytes: 6, created_at_ms: 7 },
    },
  ]);
  assert.deepEqual(await store.assets.rootfs.list(), [
    {
      ...{ id: rfs, distro: 'debian', version: '12', ...common, provider: 'debian-rootfs' },
      ...{ source: 'packages of debian 12', size_bytes: 8, created_at_ms: 9 },
    },
  ]);
  assert.equal((await store.findVm('web'))?.kernel_id, krn);
  await fails(store.assets.kernel.remove(krn), 'in_use', /VM 'web' uses it/);
  const again = new DatabaseSync(join(temp.dir, 'state.db'));
  assert.throws(() => again.exec(`pragma foreign_keys = on; delete from kernels where id = '${krn}'`), /FOREIGN KEY/);
  again.close();
});
