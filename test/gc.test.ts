/** What `gc` takes, what it leaves, and that work is refused before the disk is full. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { rejects } from './kit/behave.ts';
import { settle } from './kit/crash_deeds.ts';
import { type Ground, ground } from './kit/ground.ts';
import { loopFs } from './kit/loop-fs.ts';
import { templateDeeds } from './kit/templates.ts';
import { world } from './kit/world.ts';

let g: Ground;
const { client, built, clear } = templateDeeds(() => g);
const SOURCE = 'debian:12';
const MIB = 1024 ** 2;

before(async () => {
  g = await ground();
  await settle(() => g);
});
after(() => g[Symbol.asyncDispose]());

const names = async () => (await client().image.list({})).map(image => image.name).sort();

test('old images of templates go; what is used, the newest, and what no template made stays', async () => {
  await client().template.create({ name: 'tpl', source: SOURCE });
  await client().template.create({ name: 'gone', source: SOURCE });
  const [first, second, third] = [await built('tpl'), await built('tpl'), await built('tpl')].map(
    one => one.image.name,
  );
  const last = (await built('gone')).image.name;
  await client().template.remove({ template: 'gone' });
  await client().ws.create({ name: 'keeps', image: second ?? '' });
  const before = await names();
  const plan = await client().daemon.gc({ dry_run: true });
  const why = `'${third}' is newer of template 'tpl', and nothing came from this one`;
  assert.deepEqual(
    plan.items.map(item => [item.kind, item.name, item.why]),
    [['image', first, why]],
  );
  assert.ok(
    plan.freed_bytes > 0 &&
      plan.freed_bytes === plan.items[0]?.own_bytes &&
      plan.reserve_bytes > 0 &&
      plan.free_bytes > 0,
  );
  assert.deepEqual(await names(), before, 'a dry run changes nothing');
  const done = await client().daemon.gc({});
  assert.deepEqual([done.items, done.freed_bytes], [plan.items, plan.freed_bytes]);
  assert.deepEqual(await names(), ['base', last, second, third].sort());
  assert.deepEqual((await client().daemon.gc({})).items, []);
  await client().template.create({ name: 'on-top', source_type: 'image', source: second ?? '' });
  await client().ws.remove({ ws: 'keeps' });
  assert.deepEqual((await client().daemon.gc({})).items, [], 'a template builds on it');
  await clear();
});

test('leftovers of failed work go, also those of a removal; what is being made stays', async () => {
  const { data_dir } = g.w;
  const id = (prefix: string) => `${prefix}_01k0000000000000000000000a`;
  const part = `.${id('ws')}.01234567-89ab-cdef-0123-456789abcdef.part`;
  const strays = [
    `images/${id('img')}`,
    `workspaces/${part}`,
    `vms/${id('vm')}`,
    `kernels/${id('krn')}`,
    `tmp/${id('job')}`,
  ];
  for (const path of strays) {
    await mkdir(join(data_dir, path), { recursive: true });
    await writeFile(join(data_dir, path, 'disk.raw'), Buffer.alloc(8192, 1));
  }
  await writeFile(join(data_dir, 'images', 'notes'), 'of somebody else');
  await g.fault('fail ws.disk');
  await client().ws.create({ name: 'half', size_bytes: 16 * MIB });
  const half = await client().ws.inspect({ ws: 'half' });
  await rejects(client().ws.remove({ ws: 'half' }), 'internal');
  const plan = await client().daemon.gc({ dry_run: true });
  const wanted = [...strays, `workspaces/${half.id}`].sort();
  assert.deepEqual(plan.items.map(item => item.name).sort(), wanted);
  assert.ok(plan.items.every(item => item.kind === 'leftover' && (item.own_bytes ?? 0) >= 8192));
  const { stdout, stderr, code } = await g.w.ctl('gc', '--dry-run');
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^KIND +NAME +OWN +WHY\nleftover +/);
  assert.match(stderr, /^Not needed any more: 6 things, .* The data directory has .* free, .* kept in reserve\.$/m);
  // one that does not go holds up none of the others, and is told
  await g.fault('fail gc.leftover');
  const most = await g.w.ctl('gc', '--yes');
  assert.equal(most.code, 1, most.stderr);
  assert.match(most.stderr, /^Removed 5 things, .*\nCannot remove leftover '.*': EIO: i\/o error at gc\.leftover\.$/m);
  // made meanwhile, again and again: none of it is taken for a leftover
  const making = Array.from({ length: 8 }, (_, n) => client().ws.create({ name: `new${n}`, image: 'base' }));
  const sweeps = [client().daemon.gc({}), client().daemon.gc({}), client().daemon.gc({})];
  await Promise.all([...making, ...sweeps]);
  for (const ws of await client().ws.list({})) {
    assert.notEqual(ws.used_bytes, null, `${ws.name} lost its disk`);
    await client().ws.remove({ ws: ws.id });
  }
  assert.match((await g.w.ctl('gc', '--yes')).stderr, /^Nothing to remove\./);
  assert.deepEqual(await readdir(join(data_dir, 'images')).then(all => all.filter(name => !/^img_/.test(name))), [
    'notes',
  ]);
  await rm(join(data_dir, 'images', 'notes'));
  await clear();
});

test('an older state put back: the disks that it does not know stay until gc is asked for', async () => {
  const { w } = g;
  const state = join(w.data_dir, 'state.db');
  const older = join(w.data_dir, 'state.db.v0.bak');
  const putBack = async () => {
    await w.stop();
    for (const end of ['-wal', '-shm']) await rm(state + end, { force: true });
    await copyFile(older, state);
    await w.start();
  };
  await client().ws.create({ name: 'removed', size_bytes: 16 * MIB });
  await client().ws.remove({ ws: 'removed' });
  await w.stop();
  await copyFile(state, older);
  await w.start();
  const clone = await client().ws.create({ name: 'clone', image: 'base' });
  const empty = await client().ws.create({ name: 'empty', size_bytes: 16 * MIB });
  const copy = await client().ws.snapshot({ ws: 'empty', name: 'copy' });
  const vm = await client().vm.create({ name: 'vm', image: 'base' });
  await putBack();
  const made = [clone.id, empty.id, copy.id, vm.root_ws_id ?? ''];
  assert.deepEqual(await client().ws.list({}), []);
  for (const id of made) await stat(join(w.data_dir, 'workspaces', id, 'disk.raw'));
  const { items } = await client().daemon.gc({ dry_run: true });
  assert.deepEqual(items.map(item => item.name).sort(), made.map(id => `workspaces/${id}`).sort());
  assert.ok(items.every(item => item.why === 'a disk that no record knows'));
  await w.kill();
  await w.start();
  assert.equal((await client().daemon.gc({ dry_run: true })).items.length, 4, 'neither does the next start take them');
  await client().daemon.gc({});
  await rm(older);
  await clear();
});

test('where the disk is nearly full work is refused, with numbers, before it begins', async t => {
  const fs = await loopFs('ext4', 256);
  if (typeof fs === 'string') return t.skip(fs);
  await using mounted = fs;
  await using w = await world({ qemu: 'standin', parent: mounted.dir });
  await w.client.ws.create({ name: 'fits', size_bytes: 64 * MIB });
  const { free_bytes, reserve_bytes } = await w.client.daemon.gc({ dry_run: true });
  await writeFile(join(mounted.dir, 'ballast'), Buffer.alloc(free_bytes - reserve_bytes + MIB, 1));
  const text = /^Cannot .*: 4\.\d MiB is kept in reserve, but the data directory has 3\.\d MiB free\.$/;
  await rejects(w.client.ws.create({ name: 'more', size_bytes: 64 * MIB }), 'no_room', text);
  await rejects(w.client.ws.update({ ws: 'fits', size_bytes: 128 * MIB }), 'no_room', text);
  const { id } = await w.client.kernel.download({ provider: 'debian' });
  const job = await w.client.job.wait({ job: id, timeout_ms: 60_000 });
  assert.equal(job.error?.code, 'no_room', JSON.stringify(job.error));
  await w.client.ws.remove({ ws: 'fits' });
});
