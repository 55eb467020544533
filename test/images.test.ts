import assert from 'node:assert/strict';
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { Fault } from '../src/api/fault.ts';
import { factsOf, prettyName } from '../src/images/facts.ts';
import { mergedTar, planMerge } from '../src/images/merge.ts';
import { scanArchive } from '../src/images/scan.ts';
import { writeEntry } from '../src/images/tar.ts';
import { run } from '../src/lib/proc.ts';
import { tarPlace } from './kit/merge.ts';
import { archive, entry, gnuNames, headerOf, type Item } from './kit/tar.ts';

const { dir, write, scan, merge } = await tarPlace();
const { signal } = new AbortController();

const refused = (bytes: Buffer, why: RegExp) =>
  assert.rejects(scan(bytes), (error: unknown) => {
    assert.ok(error instanceof Fault, String(error));
    assert.equal(error.code, 'invalid');
    assert.match(error.message, why);
    return true;
  });

const long = 'd'.repeat(90);
const binary = Buffer.from([1, 0, 0, 2, 0x80, 0xff, 0x0a, 0x3d, 0, 0x20]);
const sparse_S = (item: Item, map: [number, number][], real: number): Buffer =>
  headerOf(
    {
      magic: 'ustar  \0',
      type: 'S',
      ...item,
      patch: block => {
        map.forEach(([offset, length], i) => {
          const field = (n: number) => `${n.toString(8).padStart(11, '0')}\0`;
          block.write(field(offset) + field(length), 386 + 24 * i, 'latin1');
        });
        block.write(`${real.toString(8).padStart(11, '0')}\0`, 483, 'latin1');
      },
    },
    Buffer.from(item.data ?? '').length,
  );

test('what is left alone is passed on byte for byte', async () => {
  const bytes = archive(
    { name: './', type: '5', mode: 0o755 },
    { name: './bin/', type: '5', mode: 0o755 },
    { name: './bin/ping', data: 'x'.repeat(700), pax: [['SCHILY.xattr.security.capability', binary]] },
    { name: 'old', magic: '\0'.repeat(8), data: 'v7' },
    entry({ name: '././@LongLink', type: 'L', data: `${long}/${long}/${long}\0`, magic: 'ustar  \0' }),
    { name: 'cut', magic: 'ustar  \0', data: 'long' },
    { name: 'f\u00f6\u00f6', data: 'latin' },
    { name: 'bin/sh', type: '2', link: '/bin/ping' },
    { name: 'hard', type: '1', link: './old' },
    { name: 'null', type: '3', device: [1, 3], mode: 0o666 },
    { name: 'pipe', type: '6' },
  );
  const { tar, scan: found } = await merge(bytes, []);
  const body = bytes.subarray(0, bytes.length - 1024);
  const parents = ['d', 'd/d'].length; // two folders of the long name, which the archive leaves out
  // The missing parents stand before the entry that needs them; the rest is one piece each side of it.
  const at = body.indexOf('././@LongLink');
  assert.ok(tar.includes(body.subarray(0, at)) && tar.includes(body.subarray(at)));
  assert.equal(tar.length, 512 + body.length + parents * 1536 - 1024 + 1024);
  assert.deepEqual(await gnuNames(await write(tar)), [
    './',
    './',
    './bin/',
    './bin/ping',
    'old',
    `${long}/`,
    `${long}/${long}/`,
    `${long}/${long}/${long}`,
    'f\u00f6\u00f6',
    'bin/sh',
    'hard',
    'null',
    'pipe',
  ]);
  assert.equal(found.tree.nodes.get('hard')?.target, 'old');
  assert.equal(found.newest_s, 1_700_000_000);
});

const file = (name: string, more: Partial<Item> = {}): Item => ({ name, data: 'x', ...more });

const HOSTILE: [string, Buffer, RegExp][] = [
  ['no archive', Buffer.from('hello'.repeat(300)), /wrong checksum, or this is not a tar/],
  ['an archive packed with gzip', gzipSync(archive(file('a'))), /packed with gzip\.$/],
  ['an archive packed with zstd', zstdCompressSync(archive(file('a'))), /packed with zstd\.$/],
  ['a piece of an archive packed with xz', Buffer.from('fd377a585a000004', 'hex'), /packed with xz\.$/],
  ['an empty archive', archive(), /archive is empty/],
  ['an empty file', Buffer.alloc(0), /archive is empty/],
  ['dot dot', archive(file('../etc/passwd')), /'\.\.' in its name/],
  ['dot dot inside', archive(file('a/../../b')), /'\.\.' in its name/],
  ['dot dot at the end', archive({ name: 'a/..', type: '5' }), /'\.\.' in its name/],
  ['an absolute name', archive(file('/etc/passwd')), /absolute name/],
  ['an absolute pax name', archive(file('a', { pax: [['path', '/etc/passwd']] })), /absolute name/],
  ['a pax name with dot dot', archive(file('a', { pax: [['path', 'b/../../c']] })), /'\.\.'/],
  ['a sparse name with dot dot', archive(file('a', { pax: [['GNU.sparse.name', '../c']] })), /'\.\.'/],
  ['a long name with dot dot', archive(entry({ name: 'L', type: 'L', data: '../../c\0' }), file('a')), /'\.\.'/],
  ['a prefix with dot dot', archive(file('a', { prefix: '..' })), /'\.\.'/],
  ['no name', archive(file('')), /no name/],
  ['a NUL in a name', archive(file('a', { pax: [['path', 'b\0c']] })), /NUL/],
  ['bytes after a long name', archive(entry({ name: 'L', type: 'L', data: 'b\0c' }), file('a')), /long name/],
  ['a link as folder', archive({ name: 'a', type: '2', link: '/etc' }, file('a/passwd')), /goes through 'a'/],
  ['a link as folder, later', archive(file('a/passwd'), { name: 'a', type: '2', link: '/etc' }), /twice/],
  ['a file as folder', archive(file('a'), file('a/b')), /goes through 'a'/],
  ['a link where a folder was', archive({ name: 'a', type: '5' }, { name: 'a', type: '2', link: '/' }), /twice/],
  ['a folder where a link was', archive({ name: 'a', type: '2', link: '/' }, { name: 'a', type: '5' }), /twice/],
  ['a name twice', archive(file('a'), file('./a')), /'a' is in the archive twice/],
  ['a root that is a link', archive({ name: './', type: '2', link: '/etc' }), /the root but not a directory/],
  ['a hard link to nowhere', archive({ name: 'a', type: '1', link: 'b' }), /not an earlier file/],
  ['a hard link to later', archive({ name: 'a', type: '1', link: 'b' }, file('b')), /not an earlier file/],
  ['a hard link to a folder', archive({ name: 'b', type: '5' }, { name: 'a', type: '1', link: 'b' }), /not an earlier/],
  ['a hard link out', archive({ name: 'a', type: '1', link: '../../etc/passwd' }), /'\.\.'/],
  ['a hard link, absolute', archive({ name: 'a', type: '1', link: '/etc/passwd' }), /absolute/],
  [
    'a hard link through a link',
    archive({ name: 'e', type: '2', link: '/etc' }, { name: 'a', type: '1', link: 'e/passwd' }),
    /not an earlier/,
  ],
  ['a hard link with data', archive(file('b'), { name: 'a', type: '1', link: 'b', data: 'x' }), /has data/],
  ['a folder with data', archive({ name: 'a', type: '5', data: 'x' }), /has data/],
  ['a symlink with pax data', archive({ name: 'a', type: '2', link: 'b', pax: [['size', '512']] }), /has data/],
  ['a symlink to nothing', archive({ name: 'a', type: '2' }), /link target/],
  ['a symlink too long', archive({ name: 'a', type: '2', pax: [['linkpath', 'b'.repeat(4096)]] }), /link target/],
  ['a file that is a folder', archive(file('a/')), /name of a directory/],
  ['an unknown type', archive(file('a', { type: 'Q' })), /type 'Q'/],
  ['a volume header', archive(file('a', { type: 'V' })), /type 'V'/],
  ['a global header', archive({ name: 'g', type: 'g', data: '11 path=/x\n' }, file('a')), /for all entries/],
  ['an unknown magic', archive(file('a', { magic: 'ustar\x0012' })), /magic/],
  ["star's format", archive(file('a', { patch: b => b.write('tar\0', 508, 'latin1') })), /star/],
  ['a wrong checksum', archive(Buffer.concat([entry(file('a')).fill(9, 20, 21)])), /checksum/],
  ['a size that is no number', archive(file('a', { patch: b => b.write('9z', 124, 'latin1') })), /size that cannot be/],
  ['a negative size', archive(file('a', { patch: b => b.fill(0xff, 124, 136) })), /size that cannot be/],
  [
    'an endless size',
    archive(file('a', { patch: b => b.fill(0x7f, 125, 136).fill(0x80, 124, 125) })),
    /size that cannot be/,
  ],
  ['a size past the end', archive(file('a', { size: 1_000_000 })), /cut off/],
  ['a header past the end', entry(file('a')).subarray(0, 700), /cut off/],
  [
    'two pax headers',
    archive(entry({ name: 'x', type: 'x', data: '' }), entry({ name: 'x', type: 'x', data: '' }), file('a')),
    /two extended headers/,
  ],
  ['a pax header and no entry', archive(entry({ name: 'x', type: 'x', data: '' })), /missing after its extended/],
  [
    'two names',
    archive(entry({ name: 'L', type: 'L', data: 'b\0' }), file('a', { pax: [['path', 'c']] })),
    /two kinds of header/,
  ],
  [
    'a pax key twice',
    archive(
      file('a', {
        pax: [
          ['path', 'b'],
          ['path', 'c'],
        ],
      }),
    ),
    /twice/,
  ],
  ['an unknown pax key', archive(file('a', { pax: [['SCHILY.realsize', '9']] })), /SCHILY\.realsize/],
  ['a pax size that is no number', archive(file('a', { pax: [['size', '-1']] })), /number that cannot be/],
  ['a pax length that lies', archive(entry({ name: 'x', type: 'x', data: '99 path=b\n' }), file('a')), /broken pax/],
  ['a pax record without end', archive(entry({ name: 'x', type: 'x', data: '9 path=bb' }), file('a')), /broken pax/],
  ['a pax header without equals', archive(entry({ name: 'x', type: 'x', data: '7 path\n' }), file('a')), /broken pax/],
  ['a pax header too long', archive(headerOf({ name: 'x', type: 'x' }, 2 ** 30), file('a')), /too long/],
  ['a long name too long', archive(headerOf({ name: 'L', type: 'L' }, 2 ** 30), file('a')), /too long/],
  ['a part too long', archive(file('a', { pax: [['path', 'b'.repeat(256)]] })), /255 bytes/],
  ['too deep', archive(file('a', { pax: [['path', `${'b/'.repeat(300)}c`]] })), /levels/],
  ['a name too long', archive(file('a', { pax: [['path', `${'b'.repeat(99)}/`.repeat(42)]] })), /longer than/],
  [
    'data after the end',
    Buffer.concat([entry(file('a')), Buffer.alloc(512), entry(file('b')), Buffer.alloc(1024)]),
    /after the end/,
  ],
  [
    'a sparse map too short',
    archive(sparse_S({ name: 'a', data: 'x'.repeat(600) }, [[0, 512]], 4096), Buffer.alloc(1024, 'x')),
    /does not fit/,
  ],
  [
    'a sparse map out of order',
    archive(
      sparse_S(
        { name: 'a', data: 'x'.repeat(1024) },
        [
          [4096, 512],
          [0, 512],
        ],
        8192,
      ),
      Buffer.alloc(1024),
    ),
    /broken sparse/,
  ],
  [
    'a sparse map past the end',
    archive(sparse_S({ name: 'a', data: 'x'.repeat(512) }, [[4096, 512]], 4096), Buffer.alloc(512)),
    /does not fit/,
  ],
  [
    'sparse in ustar',
    archive(sparse_S({ name: 'a', data: 'x'.repeat(512), magic: 'ustar\x0000' }, [[0, 512]], 4096), Buffer.alloc(512)),
    /'\.\.'|format that has none/,
  ],
  [
    'a sparse map longer than data',
    archive(
      file('a', {
        data: '9\n0\n512\n',
        pax: [
          ['GNU.sparse.major', '1'],
          ['GNU.sparse.minor', '0'],
          ['GNU.sparse.name', 'b'],
          ['GNU.sparse.realsize', '512'],
        ],
      }),
    ),
    /longer than its data/,
  ],
];

for (const [what, bytes, why] of HOSTILE) test(`refused: ${what}`, () => refused(bytes, why));

test('sparse files of all four forms pass, and the next entry is found', async () => {
  const base = join(dir, 'sparse');
  await run(['mkdir', base]);
  await run(['truncate', '-s', '3M', join(base, 'holes')]);
  for (const seek of [0, 100, 200, 300, 400, 500, 600])
    await run([
      'dd',
      'if=/dev/urandom',
      `of=${join(base, 'holes')}`,
      'bs=4096',
      'count=1',
      'conv=notrunc',
      `seek=${seek}`,
    ]);
  await writeFile(join(base, 'next'), 'next');
  for (const form of [['--format=gnu'], ['--sparse-version=0.0'], ['--sparse-version=0.1'], ['--sparse-version=1.0']]) {
    const path = join(dir, 'sparse.tar');
    const format = form[0]?.startsWith('--format') ? [] : ['--format=pax'];
    await run(['tar', '--hole-detection=raw', '-S', ...format, ...form, '-cf', path, '-C', base, 'holes', 'next']);
    await using handle = await open(path, 'r');
    const found = await scanArchive(handle, { signal });
    assert.deepEqual([...found.tree.nodes.keys()], ['', 'holes', 'next'], form.join());
    // 7 blocks of 4 KiB and one for 'next'; the 3 MiB of holes do not count.
    assert.equal(found.blocks, 8, form.join());
  }
});

const BUSY = [
  { name: 'bin', type: '5' },
  { name: 'bin/busybox', mode: 0o755, data: 'x' },
  { name: 'sbin/init', type: '2', link: '../bin/busybox' },
];

test('the init is known by its binaries, through merged folders too', async () => {
  const init = async (...items: Item[]) => factsOf(await scan(archive(...items))).init;
  assert.equal(await init(file('etc/passwd')), 'agent');
  assert.equal(await init(file('usr/lib/systemd/systemd'), { name: 'lib', type: '2', link: 'usr/lib' }), 'systemd');
  assert.equal(await init(file('lib/systemd/systemd')), 'systemd');
  assert.equal(await init(...BUSY, file('sbin/openrc')), 'openrc');
  assert.equal(await init(...BUSY), 'busybox');
  assert.equal(await init(file('bin/busybox')), 'agent');
  assert.equal(await init({ name: 'lib/systemd/systemd', type: '2', link: 'nowhere' }), 'agent');
  assert.equal(await init(...BUSY.slice(0, 2), { name: 'sbin/init', type: '1', link: 'bin/busybox' }), 'busybox');
});

test('the name of the system and its processor', async () => {
  assert.equal(prettyName('NAME=x\nPRETTY_NAME="A \\"B\\" \\$1"\n'), 'A "B" $1');
  assert.equal(prettyName("PRETTY_NAME='Alpine v3'"), 'Alpine v3');
  assert.equal(prettyName('NAME=x'), undefined);
  assert.equal(prettyName('PRETTY_NAME="\u001b[31mred\u0007"'), 'red');
  const elf = (machine: number) => {
    const bytes = Buffer.alloc(100);
    bytes.write('\x7fELF\x02\x01', 0, 'latin1');
    bytes.writeUInt16LE(machine, 18);
    return bytes;
  };
  const release = { name: 'usr/lib/os-release', data: 'PRETTY_NAME="Test 1"\n' };
  const link = { name: 'etc/os-release', type: '2', link: '../usr/lib/os-release' };
  const facts = factsOf(await scan(archive(release, link, { name: 'bin/x', mode: 0o755, data: elf(183) })));
  assert.deepEqual(facts, { init: 'agent', os: 'Test 1', arch: 'aarch64' });
  const none = factsOf(await scan(archive(file('a'), { name: 'bin/x', mode: 0o755, data: elf(62) })));
  assert.deepEqual(none, { init: 'agent', os: 'Linux', arch: 'x86_64' });
});

test('an archive that changes between the two readings is refused', async () => {
  const path = await write(archive(file('a', { data: 'one' })));
  await using handle = await open(path, 'r+');
  const found = await scanArchive(handle, { signal });
  await handle.write(Buffer.from('two'), 0, 3, 512);
  const drain = async () => {
    for await (const _ of mergedTar(handle, found, planMerge(found, []), { signal }));
  };
  await assert.rejects(drain(), /it changed while it was being read/);
});

test('memory does not grow with the archive', async () => {
  const path = join(dir, 'big.tar');
  const size = 2 * 1024 ** 3;
  await using handle = await open(path, 'w+');
  await handle.write(headerOf({ name: 'big' }, size));
  await handle.truncate(512 + size + 1024);
  const before = process.memoryUsage().rss;
  const found = await scanArchive(handle, { signal });
  assert.equal(found.end, 512 + size);
  assert.ok(process.memoryUsage().rss - before < 256 * 1024 * 1024);
});

test('100,000 entries pass, and an overlay finds what it takes away', async () => {
  const items = Array.from({ length: 100_000 }, (_, i): Item => ({ name: `d${i % 997}/file-${i}` }));
  const { scan: found, plan } = await merge(archive(...items), [
    { path: '/d5', type: 'delete' },
    { path: '/d6/new', type: 'file', data: Buffer.from('x') },
  ]);
  const gone = items.filter(({ name }) => name.startsWith('d5/')).length;
  assert.equal(found.tree.nodes.size, 1 + 996 + 100_000 - gone + 1);
  assert.equal(plan.entries, found.tree.nodes.size);
});

test('long numbers and names that we write are read by GNU tar as they are', async () => {
  const path = `${long}/${'\u00ff'.repeat(200)}`;
  const meta = { mode: 0o4755, uid: 3_000_000_000, gid: 7, mtime: 9_000_000_000 };
  const one = writeEntry({ path, type: 'symlink', target: 't'.repeat(300), ...meta });
  assert.deepEqual(await gnuNames(await write(Buffer.concat([one, Buffer.alloc(1024)]))), [path]);
  const found = await scan(Buffer.concat([one, Buffer.alloc(1024)]));
  assert.deepEqual([found.tree.nodes.get(path)?.uid, found.tree.nodes.get(path)?.target.length], [3_000_000_000, 300]);
  assert.equal(found.newest_s, 9_000_000_000);
});
