/** Archives become ext4: both ways of writing it, compared with what the archive says, through debugfs. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import type { Overlay } from '../src/images/merge.ts';
import { sha256File } from '../src/lib/files.ts';
import { run } from '../src/lib/proc.ts';
import { bench, env } from './kit/build.ts';
import { loopFs } from './kit/loop-fs.ts';
import { archive, type Found, type Item, inspect } from './kit/tar.ts';

const { dir, no_newer, build, put, fsck } = await bench();

/** VFS_CAP_REVISION_2 with bytes that no text survives. */
const capability = Buffer.from([1, 0, 0, 2, 0x80, 0x20, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const utf8 = (text: string) => Buffer.from(text).toString('latin1');
const ITEMS: Item[] = [
  { name: './', type: '5', mode: 0o711, mtime: 1_600_000_000 },
  { name: 'bin', type: '5', mode: 0o755 },
  { name: 'bin/su', mode: 0o4755, uid: 0, gid: 12, data: 'suid', mtime: 1_500_000_001 },
  { name: 'bin/wall', mode: 0o2755, uid: 7, gid: 12, data: 'x'.repeat(9000) },
  { name: 'bin/ping', mode: 0o755, data: 'ping', pax: [['SCHILY.xattr.security.capability', capability]] },
  { name: 'bin/hard', type: '1', link: 'bin/wall', mode: 0o2755, uid: 7, gid: 12 },
  { name: 'bin/sh', type: '2', link: '/bin/su', mode: 0o777, uid: 3, gid: 4 },
  { name: 'bin/far', type: '2', link: 'x'.repeat(99), mode: 0o777 },
  { name: 'secret', type: '5', mode: 0o500, uid: 1000, gid: 1000, mtime: 1_550_000_000 },
  { name: 'secret/none', mode: 0o000, uid: 65_534, gid: 65_534, data: 'no one reads it' },
  { name: 'tmp', type: '5', mode: 0o1777 },
  { name: 'dev/null', type: '3', device: [1, 3], mode: 0o666 },
  { name: 'dev/vda', type: '4', device: [254, 0], mode: 0o660, gid: 6 },
  { name: 'pipe', type: '6', mode: 0o600, uid: 5 },
  { name: utf8('tsch\u00fcss \u0151'), data: 'name' },
  { name: `${'deep/'.repeat(19)}x`, data: 'deep' },
  { name: 'zeros', data: Buffer.alloc(300_000) },
  { name: 'empty', mode: 0o644 },
  { name: 'bin/old', mode: 0o755, data: 'old', pax: [['SCHILY.xattr.security.capability', capability]] },
  { name: 'gone/deep/file', data: 'x' },
];

const OVERLAYS: Overlay[] = [
  { path: '/bin/tool', type: 'file', mode: 0o4711, uid: 3, gid: 4, data: Buffer.from([0, 0x80, 0xff]) },
  { path: '/bin/old', type: 'file', data: Buffer.from('new') },
  { path: '/opt/tool', type: 'symlink', target: '../bin/tool', uid: 9 },
  { path: '/opt/shared', type: 'dir', mode: 0o3770, gid: 8 },
  { path: '/gone', type: 'delete' },
];

const overlaid = async (raw: string): Promise<void> => {
  const found = await inspect(raw, ['bin/tool', 'bin/old', 'opt', 'opt/tool', 'opt/shared', 'gone', 'gone/deep']);
  const is = (path: string) => {
    const node = found.get(path) ?? assert.fail(`${path} is missing`);
    return [node.type, node.mode.toString(8), node.uid, node.gid, node.target ?? node.xattrs.length].join(' ');
  };
  assert.equal(is('bin/tool'), 'regular 4711 3 4 0');
  assert.equal(is('bin/old'), 'regular 755 0 0 0', 'the capability went with the old file');
  assert.equal(is('opt'), 'directory 755 0 0 0');
  assert.equal(is('opt/tool'), 'symlink 777 9 0 ../bin/tool');
  assert.equal(is('opt/shared'), 'directory 3770 0 8 0');
  assert.deepEqual([found.get('gone'), found.get('gone/deep')], [undefined, undefined]);
  const { stderr } = await run(['debugfs', '-R', `dump /bin/tool ${join(dir, 'tool')}`, raw], { env });
  assert.deepEqual(await readFile(join(dir, 'tool')), Buffer.from([0, 0x80, 0xff]), stderr);
};

const expected = (paths: Map<string, Found | undefined>) => {
  const at = (path: string) => paths.get(path) ?? assert.fail(`${path} is missing`);
  const who = (path: string) => [at(path).type, at(path).mode.toString(8), at(path).uid, at(path).gid].join(' ');
  assert.equal(who(''), 'directory 711 0 0');
  assert.equal(who('bin/su'), 'regular 4755 0 12');
  assert.equal(who('bin/wall'), 'regular 2755 7 12');
  assert.equal(who('bin/sh'), 'symlink 777 3 4');
  assert.equal(who('secret'), 'directory 500 1000 1000');
  assert.equal(who('secret/none'), 'regular 0 65534 65534');
  assert.equal(who('tmp'), 'directory 1777 0 0');
  assert.equal(who('dev'), 'directory 755 0 0');
  assert.equal(who('dev/null'), 'character special 666 0 0');
  assert.equal(who('dev/vda'), 'block special 660 0 6');
  assert.equal(who('pipe'), 'FIFO 600 5 0');
  assert.match(at('dev/null').device ?? '', /^0?1:0?3$/);
  assert.equal(at('bin/sh').target, '/bin/su');
  assert.equal(at('bin/far').size, 99);
  assert.equal(at('bin/wall').inode, at('bin/hard').inode);
  assert.equal(at('bin/wall').links, 2);
  assert.equal(at('bin/su').mtime, 1_500_000_001);
  assert.equal(at('secret').mtime, 1_550_000_000);
  assert.equal(at('').mtime, 1_600_000_000);
  assert.equal(at('tsch\u00fcss \u0151').size, 4);
  assert.equal(at(`${'deep/'.repeat(19)}x`).size, 4);
  assert.equal(at('zeros').blocks, 0);
  assert.match(at('bin/ping').xattrs.join(), /^security\.capability 20/);
};

const PATHS = ['', ...ITEMS.map(item => Buffer.from(item.name, 'latin1').toString().replace(/^\.\//, '')), 'dev'];

for (const method of ['tar', 'tree'] as const) {
  const options = { skip: method === 'tar' && no_newer, timeout: 180_000 };
  test(`everything in an archive and its overlays arrives, by ${method}`, options, async () => {
    const path = await put(archive(...ITEMS));
    const built = await build({ archive: path, overlays: OVERLAYS, ...(method === 'tree' ? { method } : {}) });
    assert.equal(built.method, method, built.lines.join('\n'));
    await fsck(built.out);
    expected(await inspect(built.out, PATHS));
    await overlaid(built.out);
    const value = await run(
      ['debugfs', '-R', `ea_get -f ${join(dir, 'cap')} /bin/ping security.capability`, built.out],
      { env },
    );
    assert.deepEqual(await readFile(join(dir, 'cap')), capability, value.stderr);
    const text = await run(['debugfs', '-R', 'cat /secret/none', built.out], { env });
    assert.equal(text.stdout, 'no one reads it');
    assert.equal(built.size_bytes, (await stat(built.out)).size);
    assert.equal(built.sha256, await sha256File(built.out));
    assert.ok((await stat(built.out)).blocks * 512 < 16 * 1024 * 1024, 'the image is not sparse');
  });
}

test('attributes that mke2fs would lose arrive', async () => {
  const mark: Item = { name: 'a', data: 'x', pax: [['SCHILY.xattr.user.mark', Buffer.from('a\u0080b')]] };
  const built = await build({ archive: await put(archive(mark)) });
  await fsck(built.out);
  const found = (await inspect(built.out, ['a'])).get('a');
  assert.match(found?.xattrs.join() ?? '', /^user\.mark 4/);
});

test('access control lists in the form that Debian archives have them', async () => {
  const acl = Buffer.from(
    '0200000001000700ffffffff04000500ffffffff080005000400000010000500ffffffff20000500ffffffff',
    'hex',
  );
  const journal = (value: Buffer): Item => ({
    name: 'journal/',
    type: '5',
    mode: 0o2755,
    pax: [
      ['SCHILY.xattr.system.posix_acl_access', value],
      ['SCHILY.xattr.system.posix_acl_default', value],
    ],
  });
  const built = await build({ archive: await put(archive(journal(acl))) });
  await fsck(built.out);
  for (const kind of ['access', 'default']) {
    const argv = ['debugfs', '-R', `ea_get -f ${join(dir, 'acl')} /journal system.posix_acl_${kind}`, built.out];
    const { stderr } = await run(argv, { env });
    // ext4 keeps no ID where the entry needs none, and debugfs shows a zero there.
    const shown = acl.toString('hex').replaceAll('f'.repeat(8), '0'.repeat(8));
    assert.equal((await readFile(join(dir, 'acl'))).toString('hex'), shown, stderr);
    await rm(join(dir, 'acl'));
  }
  for (const wrong of [acl.subarray(0, 43), Buffer.from('03000000', 'hex'), Buffer.alloc(44)])
    await assert.rejects(build({ archive: await put(archive(journal(wrong))) }), { code: 'invalid' });
});

test('names that libarchive would change take the way through a tree', { skip: no_newer }, async () => {
  const apart = 'u\u0308';
  const items: Item[] = [
    { name: 'a', pax: [['path', apart]] },
    { name: 'b', pax: [['path', Buffer.from([0x66, 0xf6])]] },
  ];
  const built = await build({ archive: await put(archive(...items)) });
  assert.equal(built.method, 'tree');
  assert.equal((await inspect(built.out, [apart])).get(apart)?.type, 'regular');
});

test('the file system can grow to 64 GiB and more, and the first boot has no tables to write', async () => {
  const built = await build({ archive: await put(archive(...ITEMS)) });
  const { stdout } = await run(['dumpe2fs', built.out], { env });
  // 64 bytes a descriptor, 128 MiB a group.
  assert.ok(Number(/Reserved GDT blocks: +(\d+)/.exec(stdout)?.[1]) * 64 >= 64 * 8);
  for (const line of stdout.match(/^Group \d+:.*/gm) ?? assert.fail('no groups')) assert.match(line, /ITABLE_ZEROED/);
  assert.match(stdout, /metadata_csum/);
  assert.doesNotMatch(stdout, /orphan_file|metadata_csum_seed/);
});

test('a size that is too small says what is needed, and that is enough', async () => {
  const path = await put(archive({ name: 'big', data: Buffer.alloc(40 * 1024 * 1024, 'x') }));
  let needed = 0;
  await assert.rejects(build({ archive: path, size_bytes: 20 * 1024 * 1024 }), (error: unknown) => {
    assert.ok(error instanceof Fault && error.code === 'invalid', String(error));
    assert.match(error.message, /its content needs [\d.]+ MiB, the size is 20 MiB/);
    needed = Number(/--size-bytes (\d+)/.exec(error.hint ?? '')?.[1]);
    return true;
  });
  const built = await build({ archive: path, size_bytes: needed });
  assert.equal(built.size_bytes, needed);
  await fsck(built.out);
  assert.equal((await build({ archive: path, size_bytes: 400 * 1024 ** 2 })).size_bytes, 400 * 1024 ** 2);
});

test('many small files have inodes enough', async () => {
  const items = Array.from(
    { length: 20_000 },
    (_, i): Item => ({ name: `d${i % 97}/file-with-a-name-${i}`, data: 'x' }),
  );
  const built = await build({ archive: await put(archive(...items)) });
  await fsck(built.out);
  const { stdout } = await run(['dumpe2fs', '-h', built.out], { env });
  assert.ok(Number(/Free inodes: +(\d+)/.exec(stdout)?.[1]) > 2000);
});

/** Processes whose arguments name a path. */
const users = async (path: string): Promise<string[]> => {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name) && Number(name) !== process.pid);
  const lines = await Promise.all(pids.map(pid => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')));
  return lines.filter(line => line.includes(path));
};

for (const stage of ['read', 'write', 'unpack', 'check', 'hash']) {
  test(`cancelled while it is at '${stage}', a build leaves nothing`, async () => {
    const place = await mkdtemp(join(dir, 'cancel-'));
    const path = await put(archive(...ITEMS, { name: 'big', data: Buffer.alloc(60 * 1024 * 1024, 'x') }));
    const stop = new AbortController();
    const options = {
      archive: path,
      out: join(place, 'out.raw'),
      signal: stop.signal,
      onProgress: (progress: { stage: string }) =>
        progress.stage === stage && stop.abort(new Fault('canceled', 'stop')),
      ...(stage === 'unpack' || no_newer ? { method: 'tree' as const } : {}),
    };
    await assert.rejects(build(options), (error: unknown) => error instanceof Fault && error.code === 'canceled');
    assert.deepEqual(await readdir(place), []);
    assert.deepEqual(await users(place), []);
  });
}

test('a failed build leaves nothing, and what a killed one left is taken away', async () => {
  const place = await mkdtemp(join(dir, 'fail-'));
  const out = join(place, 'out.raw');
  await mkdir(`${out}.part`);
  await writeFile(join(`${out}.part`, 'disk.raw'), 'x');
  await assert.rejects(build({ archive: await put(archive({ name: '../a' })), out }), /'\.\.' in its name/);
  assert.deepEqual(await readdir(place), []);
  await assert.rejects(build({ archive: join(place, 'nowhere'), out }), /Cannot read the archive .*: ENOENT/);
  // an archive that is not what it was says that, whatever else is wrong with it
  for (const bytes of [archive(...ITEMS), archive({ name: '../a' })])
    await assert.rejects(
      build({ archive: await put(bytes), out, archive_sha256: '0'.repeat(64) }),
      (error: unknown) =>
        error instanceof Fault && error.code === 'unverified' && /is not what was downloaded/.test(error.message),
    );
  assert.deepEqual(await readdir(place), []);
  const no_program = { mke2fs: join(place, 'mke2fs') };
  const path = await put(archive(...ITEMS));
  await assert.rejects(build({ archive: path, out, tools: no_program }), (error: unknown) => {
    assert.ok(error instanceof Fault && error.code === 'host', String(error));
    return true;
  });
  assert.deepEqual(await readdir(place), []);
});

for (const method of ['tar', 'tree'] as const) {
  test(`a full disk is no_room, and nothing is left, by ${method}`, { skip: method === 'tar' && no_newer }, async t => {
    const fs = await loopFs('ext4', 48);
    if (typeof fs === 'string') return t.skip(fs);
    await using mounted = fs;
    // Known before: the content alone does not fit. Found out later: it would fit but for what ext4 needs, or twice.
    for (const mib of [60, 40]) {
      const path = await put(archive({ name: 'big', data: Buffer.alloc(mib * 1024 * 1024, 'x') }));
      const before = (await statfs(mounted.dir)).bfree;
      await writeFile(join(mounted.dir, 'ballast'), Buffer.alloc(mib === 60 ? 0 : 1024 * 1024));
      const out = join(mounted.dir, 'out.raw');
      const result = build({ archive: path, out, ...(method === 'tree' ? { method } : {}) });
      await assert.rejects(result, (error: unknown) => {
        assert.ok(error instanceof Fault && error.code === 'no_room', String(error));
        assert.match(error.message, /needs about \d.* has \d.* free|is full/);
        return true;
      });
      await rm(join(mounted.dir, 'ballast'));
      assert.deepEqual((await readdir(mounted.dir)).sort(), ['lost+found']);
      assert.ok(Math.abs((await statfs(mounted.dir)).bfree - before) < 16);
    }
  });
}
