/** Whole systems become ext4: all inodes compared with the archive, the same bytes from whoever builds. */
import assert from 'node:assert/strict';
import { createReadStream } from 'node:fs';
import { appendFile, mkdir, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { guestOverlays } from '../src/images/overlays.ts';
import { sha256File } from '../src/lib/files.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { testRootfs } from './kit/assets.ts';
import { bench, env } from './kit/build.ts';
import { busyboxRootfs, noBusybox } from './kit/busybox.ts';
import { compareInodes } from './kit/inodes.ts';
import { entry, inspect } from './kit/tar.ts';

const { dir, no_newer, build, fsck, asUser } = await bench();

const GIB = 1024 ** 3;
/** VFS_CAP_REVISION_2 with bytes that no text survives. */
const CAPABILITY = Buffer.from([1, 0, 0, 2, 0x80, 0x20, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const LONG = `${'long-'.repeat(30)}name`;
const FORMS = {
  gnu: ['--format=gnu'],
  'pax-0.0': ['--format=pax', '--sparse-version=0.0'],
  'pax-0.1': ['--format=pax', '--sparse-version=0.1'],
  'pax-1.0': ['--format=pax', '--sparse-version=1.0'],
};

/** What a distribution's archive has not: entries to stand before its own. `sum` is that of each sparse file of 3 MiB. */
const rarities = async (): Promise<{ bytes: Buffer; sum: string }> => {
  const place = await mkdtemp(join(dir, 'rare-'));
  const parts = [
    entry({ name: 'rare/', type: '5', mode: 0o2775, gid: 50, mtime: 1_500_000_000 }),
    entry({ name: 'rare/ping', mode: 0o4755, data: 'ping', pax: [['SCHILY.xattr.security.capability', CAPABILITY]] }),
    entry({ name: 'rare/marked', data: 'x', pax: [['SCHILY.xattr.user.mark', Buffer.from([0x80, 0, 10])]] }),
    entry({ name: 'rare/disk', type: '4', device: [254, 3], mode: 0o660, gid: 6, pax: [['uid', '3000000']] }),
    entry({ name: 'rare/pipe', type: '6', mode: 0o600, uid: 5 }),
    entry({ name: 'rare/hard', type: '1', link: 'rare/ping', mode: 0o4755 }),
    entry({ name: 'rare/pax', data: 'p', pax: [['path', `rare/pax-${LONG}`]] }),
    entry({ name: '././@LongLink', type: 'L', data: `rare/gnu-${LONG}\0`, magic: 'ustar  \0' }),
    entry({ name: 'rare/cut', data: 'g', magic: 'ustar  \0' }),
  ];
  const block = Buffer.alloc(4096, 'data');
  let sum = '';
  for (const [form, flags] of Object.entries(FORMS)) {
    const name = join(place, `rare/sparse-${form}`);
    await mkdir(join(place, 'rare'), { recursive: true });
    await writeFile(name, '');
    for (const at of [0, 100, 200, 300, 400, 500, 600]) {
      await truncate(name, at * 4096);
      await appendFile(name, block);
    }
    await truncate(name, 3 * 1024 * 1024);
    sum = await sha256File(name);
    await writeFile(`${name}-large`, 'start');
    await truncate(`${name}-large`, 2 * GIB);
    const names = [`rare/sparse-${form}`, `rare/sparse-${form}-large`];
    const tar = join(place, 'some.tar');
    // a time in whole seconds: mke2fs takes no more out of an archive
    await run([
      'tar',
      '-S',
      '-b1',
      '--numeric-owner',
      '--mtime=@1600000000',
      ...flags,
      '-cf',
      tar,
      '-C',
      place,
      ...names,
    ]);
    parts.push((await readFile(tar)).subarray(0, -1024)); // its end
  }
  await rm(place, { recursive: true });
  return { bytes: Buffer.concat(parts), sum };
};

/** A system's archive with the rarities in it. */
const whole = async (system: string | Buffer): Promise<{ tar: string; sum: string }> => {
  const { bytes, sum } = await rarities();
  const tar = join(await mkdtemp(join(dir, 'whole-')), 'in.tar');
  await writeFile(tar, bytes);
  if (typeof system === 'string') await appendFile(tar, createReadStream(system));
  else await appendFile(tar, system);
  return { tar, sum };
};

/** Everything that is in the archive is in the file system, and no more. */
const isThere = async (t: TestContext, tar: string, raw: string, sum: string): Promise<void> => {
  await fsck(raw);
  const { wrong, inodes } = await compareInodes(tar, raw);
  assert.deepEqual(wrong.slice(0, 5), []);
  t.diagnostic(`${inodes} inodes`);
  const saved = join(dir, 'saved');
  const debugfs = (command: string) => run(['debugfs', '-R', command, raw], { env });
  const values: [string, string, Buffer][] = [
    ['ping', 'security.capability', CAPABILITY],
    ['marked', 'user.mark', Buffer.from([0x80, 0, 10])],
  ];
  for (const [name, key, value] of values) {
    const { stderr } = await debugfs(`ea_get -f ${saved} /rare/${name} ${key}`);
    assert.deepEqual(await readFile(saved), value, stderr);
    await rm(saved);
  }
  const sparse = await inspect(
    raw,
    Object.keys(FORMS).flatMap(form => [`rare/sparse-${form}`, `rare/sparse-${form}-large`]),
  );
  for (const [path, node] of sparse) {
    const large = path.endsWith('-large');
    assert.deepEqual(
      [node?.size, (node?.blocks ?? 0) <= (large ? 16 : 64)],
      [large ? 2 * GIB : 3 * 1024 ** 2, true],
      path,
    );
    if (large) continue;
    await debugfs(`dump /${path} ${saved}`);
    assert.equal(await sha256File(saved), sum, path);
    await rm(saved);
  }
};

/** As root: GNU tar compares every byte with the mounted image. */
const sameContent = async (t: TestContext, tar: string, raw: string): Promise<void> => {
  const mount = await mkdtemp(join(dir, 'mnt-'));
  const mounted = await runAny(['mount', '-o', 'ro,loop,noload', raw, mount], { env });
  if (mounted.code !== 0) return t.diagnostic(`contents not compared: ${mounted.stderr.trim()}`);
  try {
    const argv = ['tar', '--compare', '--numeric-owner', '-f', tar, '-C', mount];
    const diff = await runAny(argv, { env, timeout_ms: 300_000 });
    assert.equal(diff.code, 0, (diff.stdout + diff.stderr).slice(0, 2000));
  } finally {
    await run(['umount', '-l', mount], { env });
  }
};

test('a whole BusyBox arrives, and whoever builds it where makes the same bytes', { timeout: 900_000 }, async t => {
  const why = await noBusybox();
  if (why !== undefined) return t.skip(why);
  const { tar, sum } = await whole(await busyboxRootfs());
  const inputs = new Set<string>();
  for (const method of ['tar', 'tree'] as const) {
    if (method === 'tar' && no_newer) {
      t.diagnostic(`by tar: ${no_newer}`);
      continue;
    }
    const how = method === 'tree' ? { method } : {};
    const one = await build({ archive: tar, ...how });
    assert.equal(one.method, method, one.lines.join('\n'));
    await isThere(t, tar, one.out, sum);
    const other = await mkdtemp(join(dir, 'an-other-place-'));
    const two = await build({ archive: tar, ...how, out: join(other, 'disk') });
    const users = await asUser(tar, method);
    if (typeof users === 'string') t.diagnostic(`as an ordinary user, by ${method}: ${users}`);
    else assert.deepEqual(users.left, []);
    for (const same of [two, ...(typeof users === 'string' ? [] : [users])])
      assert.deepEqual([same.sha256, same.inputs_sha256, same.method], [one.sha256, one.inputs_sha256, method]);
    inputs.add(one.inputs_sha256);
  }
  assert.equal(inputs.size, no_newer ? 1 : 2, 'two ways make two file systems');
});

for (const method of ['tar', 'tree'] as const) {
  const options = { skip: method === 'tar' && no_newer, timeout: 900_000 };
  test(`a whole Debian arrives, by ${method}, from an ordinary user`, options, async t => {
    const rootfs = await testRootfs(['systemd-sysv', 'udev']);
    const { tar, sum } = await whole(rootfs.tar);
    const users = await asUser(tar, method);
    if (typeof users === 'string') t.diagnostic(`built as this user: ${users}`);
    const made =
      typeof users === 'string' ? await build({ archive: tar, ...(method === 'tree' ? { method } : {}) }) : users;
    assert.match(made.facts.os, /^Debian GNU\/Linux 12/);
    assert.equal(made.method, method);
    await isThere(t, tar, made.out, sum);
    if (method === 'tree' || typeof users === 'string') return;
    const mine = await build({ archive: tar });
    assert.deepEqual([mine.sha256, mine.inputs_sha256], [users.sha256, users.inputs_sha256]);
    await sameContent(t, tar, mine.out);
  });
}

test('the hash of the inputs is another for each thing that makes other bytes', { skip: no_newer }, async () => {
  const tar = join(dir, 'small.tar');
  const agent = Buffer.from('agent');
  await writeFile(tar, Buffer.concat([entry({ name: 'a', data: 'x' }), Buffer.alloc(1024)]));
  const label = { template: null, template_version: null, rootfs: null, rootfs_sha256: null, agent_version: '9' };
  const defaults: NonNullable<Parameters<typeof build>[0]['defaults']> = (scan, facts) =>
    guestOverlays(scan, facts, { name: 'x', init: 'agent', agent, label });
  const made = [
    await build({ archive: tar }),
    await build({ archive: tar, method: 'tree' }),
    await build({ archive: tar, size_bytes: 256 * 1024 ** 2 }),
    await build({ archive: tar, defaults }),
    await build({ archive: tar, overlays: [{ path: 'b', type: 'file', data: Buffer.from('1') }] }),
    await build({ archive: tar, overlays: [{ path: 'b', type: 'file', data: Buffer.from('2') }] }),
    await build({ archive: tar, overlays: [{ path: 'b', type: 'file', data: Buffer.from('2'), uid: 1 }] }),
    await build({ archive: tar, overlays: [{ path: 'a', type: 'delete' }] }),
  ];
  for (const what of ['sha256', 'inputs_sha256'] as const)
    assert.equal(new Set(made.map(image => image[what])).size, made.length, what);
});
