import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import {
  chmod,
  copyFile,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  statfs,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import type { Disks } from '../src/disk/disk.ts';
import { pickDisks } from '../src/disk/pick.ts';
import { sha256File } from '../src/lib/files.ts';
import { silentLog } from '../src/lib/log.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { agentBinaries } from './kit/agent.ts';
import { type FsKind, loopFs } from './kit/loop-fs.ts';

const MIB = 1024 * 1024;
const SBIN = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C' };
const [IMG, IMG2] = ['img_01k0000000000000000000000a', 'img_01k0000000000000000000000b'];
const [WS, WS2, WS3] = [
  'ws_01k0000000000000000000000a',
  'ws_01k0000000000000000000000b',
  'ws_01k0000000000000000000000c',
];
const signal = () => AbortSignal.timeout(60_000);
const fault = (code: string) => (error: unknown) => error instanceof Fault && error.code === code;

/** 64 MiB long: 1 MiB of data, a hole, 1 MiB of data near the end. */
const master = async (path: string): Promise<string> => {
  await using handle = await open(path, 'wx');
  await handle.truncate(64 * MIB);
  await handle.write(randomBytes(MIB), 0, MIB, 0);
  await handle.write(randomBytes(MIB), 0, MIB, 60 * MIB);
  await handle.sync();
  return path;
};

const prefixHash = async (path: string, bytes: number): Promise<string> => {
  const copy = `${path}.cut`;
  await runAny(['cp', '--sparse=always', path, copy]);
  await truncate(copy, bytes);
  const hash = await sha256File(copy);
  await rm(copy);
  return hash;
};

/** All that a backend promises, on whatever lies under `dir`. */
const promises = async (t: TestContext, dir: string, disks: Disks): Promise<void> => {
  const source = await master(join(dir, 'master.raw'));
  const wanted = await sha256File(source);

  await t.test('an image is the file, sparse, read-only and private to nobody', async () => {
    const path = await disks.importImage(source, IMG, signal());
    assert.equal(path, disks.path('images', IMG));
    assert.equal(await sha256File(path), wanted);
    assert.equal((await stat(path)).mode & 0o7777, 0o444);
    const usage = await disks.usage('images', IMG);
    assert.equal(usage.size_bytes, 64 * MIB);
    assert.ok(usage.allocated_bytes < 4 * MIB, `holes became data: ${usage.allocated_bytes}`);
    await assert.rejects(disks.importImage(source, IMG, signal()), fault('exists'));
    assert.equal(await sha256File(source), wanted);
  });

  await t.test('an import may take its file over', async () => {
    const other = await master(join(dir, 'other.raw'));
    const hash = await sha256File(other);
    const path = await disks.importImage(other, IMG2, signal(), { move: true });
    assert.equal(await sha256File(path), hash);
    await assert.rejects(stat(other), { code: 'ENOENT' });
    assert.equal((await stat(path)).mode & 0o7777, 0o444);
    await disks.removeImage(IMG2);
  });

  await t.test('a clone begins as the image, is longer, and writes to it stay in it', async () => {
    const path = await disks.clone(IMG, WS, 256 * MIB, signal());
    assert.equal(await prefixHash(path, 64 * MIB), wanted);
    assert.equal((await stat(path)).mode & 0o7777, 0o600);
    const usage = await disks.usage('workspaces', WS);
    assert.equal(usage.size_bytes, 256 * MIB);
    assert.ok(usage.allocated_bytes < 4 * MIB, `holes became data: ${usage.allocated_bytes}`);
    const second = await disks.clone(IMG, WS2, 64 * MIB, signal());
    await using handle = await open(path, 'r+');
    await handle.write(randomBytes(4096), 0, 4096, 0);
    await handle.sync();
    assert.equal(await sha256File(disks.path('images', IMG)), wanted);
    assert.equal(await sha256File(second), wanted);
  });

  await t.test('a disk grows and never shrinks', async () => {
    await disks.grow(WS2, 128 * MIB);
    await disks.grow(WS2, 128 * MIB);
    assert.equal((await disks.usage('workspaces', WS2)).size_bytes, 128 * MIB);
    await assert.rejects(disks.grow(WS2, 100 * MIB), fault('invalid'));
    await assert.rejects(disks.clone(IMG, WS3, 32 * MIB, signal()), fault('invalid'));
    await assert.rejects(disks.grow(WS3, 32 * MIB), fault('not_found'));
    assert.deepEqual((await readdir(join(dir, 'workspaces'))).sort(), [WS, WS2]);
  });

  await t.test('a snapshot begins as its workspace is, and the two part', async () => {
    const from = disks.path('workspaces', WS);
    const before = await sha256File(from);
    const path = await disks.snapshot(WS, WS3, signal());
    assert.equal(await sha256File(path), before);
    assert.deepEqual([(await stat(path)).size, (await stat(path)).mode & 0o7777], [256 * MIB, 0o600]);
    await disks.grow(WS3, 300 * MIB);
    await using handle = await open(path, 'r+');
    await handle.write(randomBytes(4096), 0, 4096, 4096);
    await handle.sync();
    assert.equal(await sha256File(from), before);
    await assert.rejects(disks.snapshot(WS, WS3, signal()), fault('exists'));
    await assert.rejects(disks.snapshot('ws_01k0000000000000000000000d', WS3, signal()), fault('exists'));
    await disks.removeWs(WS3);
    await assert.rejects(disks.snapshot('ws_01k0000000000000000000000d', WS3, signal()), fault('not_found'));
  });

  await t.test('what disks share is told apart from what is their own', async () => {
    const all = [
      { kind: 'images', id: IMG },
      { kind: 'workspaces', id: WS },
      { kind: 'workspaces', id: WS3 },
    ] as const;
    const [image, ws, none] = await disks.space(all);
    assert.deepEqual(none, { used_bytes: null, own_bytes: null, shared_bytes: null });
    assert.ok(image && ws);
    const { own_bytes, shared_bytes, used_bytes } = ws;
    assert.ok(own_bytes !== null && shared_bytes !== null, 'not known');
    assert.equal(own_bytes + shared_bytes, used_bytes);
    if (disks.backend === 'copy') assert.equal(shared_bytes, 0);
    else assert.ok(own_bytes >= 4096 && own_bytes < MIB && shared_bytes >= 2 * MIB - 65_536, JSON.stringify(ws));
    assert.ok(
      (image.used_bytes ?? 0) >= 2 * MIB && image.own_bytes === (image.used_bytes ?? 0) - (image.shared_bytes ?? 0),
    );
  });

  await t.test('an empty disk with a label is an ext4 file system that takes next to no room', async () => {
    const path = await disks.empty(WS3, 1024 * MIB, signal(), 'a-label-that-is-long');
    const { stdout } = await run(['dumpe2fs', '-h', path], { env: SBIN });
    assert.match(stdout, /^Filesystem volume name: +a-label-that-is-$/m);
    assert.match(stdout, /^Block count: +262144$/m);
    assert.equal((await runAny(['e2fsck', '-fn', path], { env: SBIN })).code, 0);
    assert.ok((await disks.usage('workspaces', WS3)).allocated_bytes < 4 * MIB);
    await disks.removeWs(WS3);
  });

  await t.test('an empty disk takes no room', async () => {
    await disks.empty(WS3, 1024 * MIB, signal());
    const usage = await disks.usage('workspaces', WS3);
    assert.equal(usage.size_bytes, 1024 * MIB);
    assert.ok(usage.allocated_bytes < MIB);
    await assert.rejects(disks.empty(WS3, MIB, signal()), fault('exists'));
    await disks.removeWs(WS3);
    await disks.removeWs(WS3);
    await assert.rejects(disks.usage('workspaces', WS3), fault('not_found'));
  });

  await t.test('names that are no IDs go nowhere', async () => {
    for (const id of ['', '..', '../images', `${WS}/..`, 'ws_x', IMG])
      await assert.rejects(disks.empty(id, MIB, signal()), fault('invalid'));
    assert.throws(() => disks.path('images', '../../etc'), fault('invalid'));
    await assert.rejects(disks.removeWs('../workspaces'), fault('invalid'));
    await assert.rejects(disks.clone(IMG2, WS3, 64 * MIB, signal()), fault('not_found'));
  });

  await t.test('two at once: one wins, one is told, nothing is left over', async () => {
    const both = await Promise.allSettled([1, 2].map(() => disks.clone(IMG, WS3, 64 * MIB, signal())));
    assert.equal(both.filter(r => r.status === 'fulfilled').length, 1);
    assert.ok(both.some(r => r.status === 'rejected' && fault('exists')(r.reason)));
    assert.equal(await sha256File(disks.path('workspaces', WS3)), wanted);
    assert.deepEqual((await readdir(join(dir, 'workspaces'))).sort(), [WS, WS2, WS3]);
    await disks.removeWs(WS3);
  });

  await t.test('cancelled, it leaves nothing', async () => {
    await assert.rejects(disks.clone(IMG, WS3, 64 * MIB, AbortSignal.abort()));
    await assert.rejects(disks.importImage(source, IMG2, AbortSignal.abort()));
    assert.deepEqual((await readdir(join(dir, 'workspaces'))).sort(), [WS, WS2]);
    assert.deepEqual(await readdir(join(dir, 'images')), [IMG]);
  });

  await t.test('what is being made is no leftover', async () => {
    const making = disks.empty(WS3, 64 * MIB, signal(), 'data');
    const known = { images: new Set([IMG]), workspaces: new Set([WS, WS2]) };
    const seen: string[] = [];
    let made = false;
    const done = making.then(() => {
      made = true;
    });
    while (!made) {
      seen.push(...(await disks.leftovers(known)).map(one => one.name).filter(name => name.includes('.part')));
      await new Promise(resolve => setTimeout(resolve, 1));
    }
    await done;
    assert.deepEqual(seen, []);
    assert.deepEqual(
      (await disks.leftovers(known)).map(one => one.name),
      [`workspaces/${WS3}`],
    );
    await disks.removeWs(WS3);
  });

  await t.test('the sweep takes what is half made or noted, and only that', async () => {
    const half = `.${WS3}.01234567-89ab-cdef-0123-456789abcdef.part`;
    await mkdir(join(dir, 'workspaces', half));
    await writeFile(join(dir, 'workspaces', half, 'disk.raw'), 'x');
    await mkdir(join(dir, 'workspaces', 'notes'));
    const known = { images: new Set([IMG]), workspaces: new Set([WS]) };
    assert.deepEqual(await disks.sweep(known, new Set()), [`workspaces/${half}`], 'a whole disk stays');
    await mkdir(join(dir, 'workspaces', half));
    const swept = await disks.sweep(known, new Set([IMG, WS, WS2]));
    assert.deepEqual(swept.sort(), [`workspaces/${half}`, `workspaces/${WS2}`]);
    assert.deepEqual((await readdir(join(dir, 'workspaces'))).sort(), ['notes', WS].sort());
    assert.deepEqual(await readdir(join(dir, 'images')), [IMG]);
  });

  await t.test('nothing outside the data directory is removed', async () => {
    const outside = await mkdtemp(join(tmpdir(), 'nexus-disk-out-'));
    await writeFile(join(outside, 'precious'), 'x');
    await symlink(outside, join(dir, 'workspaces', WS2));
    await disks.removeWs(WS2);
    assert.equal(await readFile(join(outside, 'precious'), 'utf8'), 'x');
    await rm(outside, { recursive: true });
  });

  await t.test('all of it can be removed', async () => {
    await disks.removeWs(WS);
    await disks.removeImage(IMG);
    assert.deepEqual(await readdir(join(dir, 'images')), []);
    assert.deepEqual(await readdir(join(dir, 'workspaces')), ['notes']);
  });
};

const probe = async () => (await agentBinaries()).probe;

const BACKEND: Record<FsKind, Disks['backend']> = { btrfs: 'btrfs', xfs: 'reflink', ext4: 'copy' };

for (const kind of ['btrfs', 'xfs', 'ext4'] as const) {
  test(`disks on ${kind}`, async t => {
    const fs = await loopFs(kind, 512);
    if (typeof fs === 'string') return t.skip(fs);
    await using mounted = fs;
    const data = join(mounted.dir, 'data');
    const disks = await pickDisks(data, silentLog(), { probe: await probe() });
    assert.equal(disks.backend, BACKEND[kind], disks.why);
    assert.deepEqual(await readdir(data), []);
    await promises(t, data, disks);
  });
}

test('a data directory that was copied to another file system works on there', async t => {
  const kinds = ['btrfs', 'xfs', 'ext4'] as const;
  const made = await Promise.all(kinds.map(kind => loopFs(kind, 512)));
  await using stack = new AsyncDisposableStack();
  for (const fs of made) if (typeof fs !== 'string') stack.use(fs);
  const why = made.find(fs => typeof fs === 'string');
  if (typeof why === 'string') return t.skip(why);
  const dirs = made.flatMap(fs => (typeof fs === 'string' ? [] : [join(fs.dir, 'data')]));
  const [first = '', ...rest] = dirs;
  const disks = await pickDisks(first, silentLog());
  const source = await master(join(first, 'master.raw'));
  const wanted = await sha256File(source);
  await disks.importImage(source, IMG, signal());
  await disks.clone(IMG, WS, 128 * MIB, signal());
  let from = first;
  for (const to of [...rest, `${first}-again`]) {
    await run(['cp', '-a', '--sparse=always', from, to]);
    const there = await pickDisks(to, silentLog());
    const clone = await there.clone(IMG, WS2, 64 * MIB, signal());
    assert.equal(await sha256File(clone), wanted, there.why);
    assert.ok((await there.usage('workspaces', WS2)).allocated_bytes < 4 * MIB, there.why);
    await there.grow(WS, 192 * MIB);
    for (const id of [WS, WS2]) await there.removeWs(id);
    assert.deepEqual(await readdir(join(to, 'workspaces')), []);
    await there.clone(IMG, WS, 64 * MIB, signal());
    from = to;
  }
  const last = await pickDisks(from, silentLog());
  await last.removeImage(IMG);
  assert.deepEqual(await readdir(join(from, 'images')), []);
});

test('disks in the directory for temporary files, whatever lies under it', async t => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-disk-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  await promises(t, dir, await pickDisks(dir, silentLog(), { probe: await probe() }));
});

test('where blocks are shared, what is imported keeps out of the reserve as well', async t => {
  const fs = await loopFs('xfs', 512);
  if (typeof fs === 'string') return t.skip(fs);
  await using mounted = fs;
  const disks = await pickDisks(mounted.dir, silentLog());
  assert.equal(disks.backend, 'reflink');
  const source = await master(join(mounted.dir, 'master.raw'));
  const { free_bytes, reserve_bytes } = await disks.room();
  const ballast = join(mounted.dir, 'ballast');
  await run(['fallocate', '-l', String(free_bytes - reserve_bytes + MIB), ballast]);
  await assert.rejects(disks.importImage(source, IMG, signal()), /\d MiB is kept in reserve, but/);
  await rm(ballast);
  await disks.importImage(source, IMG, signal());
});

test('a full disk is no_room, with numbers, and nothing is left', async t => {
  const fs = await loopFs('ext4', 64);
  if (typeof fs === 'string') return t.skip(fs);
  await using mounted = fs;
  const disks = await pickDisks(mounted.dir, silentLog());
  const elsewhere = await mkdtemp(join(tmpdir(), 'nexus-disk-'));
  t.after(() => rm(elsewhere, { recursive: true, force: true }));
  const big = join(elsewhere, 'big.raw');
  await writeFile(big, randomBytes(80 * MIB));
  const before = (await statfs(mounted.dir)).bfree;
  await assert.rejects(disks.importImage(big, IMG, signal()), (error: unknown) => {
    assert.ok(error instanceof Fault);
    assert.equal(error.code, 'no_room');
    assert.match(
      error.message,
      /it takes 80(\.\d)? MiB and 1\.\d MiB is kept in reserve, but the data directory has \d+.* MiB free\.$/,
    );
    assert.match(error.hint ?? '', /nexusctl gc --dry-run/);
    return true;
  });
  await symlink(big, join(elsewhere, 'link.raw'));
  await assert.rejects(disks.importImage(join(elsewhere, 'link.raw'), IMG, signal()), /it takes 80(\.\d)? MiB and/);
  const others = await pickDisks(elsewhere, silentLog());
  await others.importImage(big, IMG, signal());
  const text = /Cannot export image .*: it takes 80(\.\d)? MiB, but \/.* has \d+.* MiB free\.$/;
  await assert.rejects(others.exportImage(IMG, join(mounted.dir, 'out'), signal()), text);
  {
    using _first = await disks.promiseRoom('build one', 35 * MIB);
    const text =
      /Cannot build two: it takes 25 MiB and 35 MiB is for work that runs, 1\.\d MiB is kept in reserve, but/;
    await assert.rejects(disks.promiseRoom('build two', 25 * MIB), text);
    await assert.rejects(disks.needRoom('build two', 25 * MIB), text);
    await disks.needRoom('make what takes nothing', 0);
    await writeFile(join(mounted.dir, 'out'), randomBytes(25 * MIB)); // what is taken is not promised any more
    using _second = await disks.promiseRoom('build two', 8 * MIB);
    await assert.rejects(disks.needRoom('build three', 16 * MIB), fault('no_room'));
    await rm(join(mounted.dir, 'out'));
  }
  await disks.needRoom('build two', 25 * MIB);
  // What the file system only finds out while it writes: a source whose length nobody knew.
  const pipe = join(elsewhere, 'pipe');
  await run(['mkfifo', pipe]);
  const pouring = writeFile(pipe, randomBytes(80 * MIB)).catch(() => {}); // its reader goes away
  await assert.rejects(disks.importImage(pipe, IMG, signal()), fault('no_room'));
  await pouring;
  const small = join(elsewhere, 'small.raw');
  await writeFile(small, randomBytes(20 * MIB));
  await disks.importImage(small, IMG, signal());
  // there is room for one more: who comes while that is being copied is refused before it writes
  const racing = [
    ...[WS, WS2, WS3].map(id => disks.clone(IMG, id, 20 * MIB, signal())),
    disks.exportImage(IMG, join(mounted.dir, 'out'), signal()),
  ];
  const results = await Promise.allSettled(racing);
  const failed = results.flatMap(r => (r.status === 'rejected' ? [r.reason] : []));
  assert.equal(failed.length, 3);
  for (const reason of failed) assert.match(String(reason), /MiB is for work that runs/);
  for (const name of await readdir(join(mounted.dir, 'workspaces'))) assert.ok(!name.startsWith('.'), name);
  for (const id of [WS, WS2, WS3]) await disks.removeWs(id);
  await rm(join(mounted.dir, 'out'), { force: true });
  {
    const first = await disks.promiseRoom('copy one', 20 * MIB);
    using _second = await disks.promiseRoom('copy two', 10 * MIB);
    await writeFile(join(mounted.dir, 'out'), randomBytes(20 * MIB));
    first[Symbol.dispose]();
    // what the first took is none of what the second was promised
    await assert.rejects(disks.needRoom('copy three', 10 * MIB), /10 MiB is for work that runs/);
    await rm(join(mounted.dir, 'out'));
  }
  await disks.removeImage(IMG);
  assert.ok(before - (await statfs(mounted.dir)).bfree < 16);
});

for (const kind of ['btrfs', 'xfs', 'ext4'] as const) {
  test(`an ordinary user has clones and snapshots on ${kind} and removes them`, async t => {
    const fs = await loopFs(kind, 512);
    if (typeof fs === 'string') return t.skip(fs);
    await using mounted = fs;
    const helper = join(mounted.dir, 'probe');
    await copyFile(await probe(), helper);
    await chmod(helper, 0o755);
    const program = `
    import { pickDisks } from ${JSON.stringify(join(import.meta.dirname, '../src/disk/pick.ts'))};
    import { silentLog } from ${JSON.stringify(join(import.meta.dirname, '../src/lib/log.ts'))};
    import { readdirSync, writeFileSync } from 'node:fs';
    const dir = ${JSON.stringify(join(mounted.dir, 'mine'))};
    const signal = AbortSignal.timeout(30000);
    const disks = await pickDisks(dir, silentLog(), { probe: ${JSON.stringify(helper)} });
    writeFileSync(dir + '/m', Buffer.alloc(1 << 20, 7));
    await disks.importImage(dir + '/m', '${IMG}', signal);
    await disks.clone('${IMG}', '${WS}', 2 << 20, signal);
    await disks.snapshot('${WS}', '${WS2}', signal);
    await disks.empty('${WS3}', 16 << 20, signal, 'data');
    const [space] = await disks.space([{ kind: 'workspaces', id: '${WS2}' }]);
    await disks.removeImage('${IMG}');
    const left = readdirSync(dir + '/images').length;
    for (const id of ['${WS}', '${WS2}', '${WS3}']) await disks.removeWs(id);
    const shares = space.shared_bytes >= 1 << 20;
    console.log(JSON.stringify([process.getuid(), disks.backend, shares, left, readdirSync(dir + '/workspaces').length]));`;
    const script = join(mounted.dir, 'user.ts');
    await writeFile(script, program);
    await chmod(script, 0o644);
    const argv = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups', process.execPath, script];
    const result = await runAny(argv, { cwd: mounted.dir });
    if (/EACCES|Permission denied|ERR_MODULE_NOT_FOUND/.test(result.stderr) && result.stdout === '')
      return t.skip(`another user cannot read this checkout: ${result.stderr.trim().split('\n')[0]}`);
    assert.equal(result.code, 0, result.stderr);
    assert.deepEqual(JSON.parse(result.stdout), [65534, BACKEND[kind], kind !== 'ext4', 0, 0]);
  });
}
