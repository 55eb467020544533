/** What is laid over an archive: the overlays of a template, and the defaults that every image gets. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { factsOf } from '../src/images/facts.ts';
import type { Overlay } from '../src/images/merge.ts';
import { type GuestOptions, guestOverlays } from '../src/images/overlays.ts';
import { run } from '../src/lib/proc.ts';
import { tarPlace } from './kit/merge.ts';
import { archive, gnuNames, type Item } from './kit/tar.ts';

const { dir, write, scan, merge } = await tarPlace();

const bytesOf = (text: string) => Buffer.from(text).toString('latin1');
const file = (name: string, more: Partial<Item> = {}): Item => ({ name, data: 'x', ...more });

/** The text of a file of an archive, as GNU tar reads it. */
const textIn = async (tar: Buffer, name: string): Promise<string> =>
  (await run(['tar', '-xOf', await write(tar), name])).stdout;

test('an overlay wins over the archive, and its old pax header goes too; a default gives way', async () => {
  const bytes = archive(
    { name: './etc', type: '5' },
    { name: 'etc/hosts', data: 'theirs', mode: 0o640, gid: 7, pax: [['SCHILY.xattr.user.mark', 'lost']] },
    { name: 'etc/hostname', data: 'theirs' },
    { name: 'etc/zzz', data: 'kept' },
  );
  const { tar, scan: found } = await merge(
    bytes,
    [
      { path: '/etc/hosts', type: 'file', data: Buffer.from('ours') },
      { path: '/opt/a/b', type: 'symlink', target: 'c' },
      { path: '/etc/new', type: 'file', data: Buffer.from('first') },
      { path: '/etc/new', type: 'file', data: Buffer.from('second'), mode: 0o4711, uid: 3, gid: 4 },
      { path: '/opt/\u0151', type: 'file' },
    ],
    () => [
      { path: 'etc/hostname', type: 'file', data: Buffer.from('default'), when: 'missing' },
      { path: 'etc/hosts', type: 'file', data: Buffer.from('default') },
      { path: 'etc/zzz', type: 'file', data: Buffer.from('default') },
    ],
  );
  const names = ['./', './etc', 'etc/hostname', 'etc/hosts', 'opt/', 'opt/a/', 'opt/a/b', 'etc/new', 'opt/\u0151'];
  assert.deepEqual(await gnuNames(await write(tar)), [...names, 'etc/zzz'].map(bytesOf));
  const kept = { 'etc/hosts': 'ours', 'etc/hostname': 'theirs', 'etc/new': 'second', 'etc/zzz': 'default' };
  for (const [name, text] of Object.entries(kept)) assert.equal(await textIn(tar, name), text, name);
  assert.ok(!tar.includes('user.mark') && !tar.includes('first'));
  const who = (path: string) => {
    const node = found.tree.nodes.get(path);
    return [node?.mode.toString(8), node?.uid, node?.gid].join(' ');
  };
  // an overlay has the mode and the owner of what it replaces unless it says otherwise; a default has its own
  assert.deepEqual(['etc/hosts', 'etc/new', 'etc/zzz'].map(who), ['640 0 7', '4711 3 4', '644 0 0']);
});

const OVERLAID = archive(
  { name: 'usr/sbin', type: '5' },
  { name: 'sbin', type: '2', link: 'usr/sbin' },
  { name: 'lib', type: '2', link: '/usr/./lib/../lib' },
  { name: 'etc', type: '2', link: '../../../conf' },
  { name: 'loop', type: '2', link: 'loop' },
  { name: 'file', data: 'x' },
  { name: 'hard', type: '1', link: 'file' },
  { name: 'link', type: '2', link: '/etc/passwd' },
  { name: 'null', type: '3', device: [1, 3] },
);

test("an overlay goes through the archive's own links", async () => {
  const { scan: found } = await merge(OVERLAID, [
    { path: '/sbin/reboot', type: 'symlink', target: 'x' },
    { path: '/lib/a', type: 'file' },
    { path: '/etc/b', type: 'file' },
    { path: '/link', type: 'symlink', target: 'elsewhere' },
    { path: '/hard', type: 'file' },
    { path: '/null', type: 'file' },
  ]);
  for (const name of ['usr/sbin/reboot', 'usr/lib/a', 'conf/b']) assert.ok(found.tree.nodes.has(name), name);
  for (const name of ['sbin/reboot', 'lib/a', 'etc/b']) assert.ok(!found.tree.nodes.has(name), name);
  assert.equal(found.tree.nodes.get('link')?.target, 'elsewhere');
  assert.deepEqual(
    ['hard', 'null'].map(name => found.tree.nodes.get(name)?.kind),
    ['file', 'file'],
  );
});

const WRONG: [Overlay, RegExp][] = [
  [{ path: '/a/../../b', type: 'file' }, /overlay '\/a\/\.\.\/\.\.\/b' in the image: it has '\.\.' in its name\.$/],
  [{ path: '/a/..', type: 'delete' }, /Cannot delete .* it has '\.\.'/],
  [{ path: '/', type: 'file' }, /it has no name/],
  [{ path: '/.', type: 'delete' }, /it is the root/],
  [{ path: '//etc', type: 'file' }, /absolute name/],
  [{ path: '/a\0b', type: 'file' }, /NUL/],
  [{ path: `/${'n'.repeat(256)}`, type: 'file' }, /255 bytes/],
  [{ path: `/${'n/'.repeat(300)}`, type: 'file' }, /deeper/],
  [{ path: '/loop/a', type: 'file' }, /a file in its way, or a circle of links/],
  [{ path: '/file/a', type: 'file' }, /a file in its way/],
  [{ path: '/usr/sbin', type: 'file' }, /there is a directory/],
  [{ path: '/usr', type: 'symlink', target: 'x' }, /there is a directory/],
  [{ path: '/sbin', type: 'dir' }, /there is a link to 'usr\/sbin'/],
  [{ path: '/link', type: 'file' }, /there is a link to '\/etc\/passwd'/],
  [{ path: '/new', type: 'symlink' }, /no link can lead to ''/],
  [{ path: '/new', type: 'symlink', target: 'a\0' }, /no link can lead/],
  [{ path: '/new', type: 'symlink', target: '\u0151'.repeat(2048) }, /no link can lead/],
  [{ path: '/file', type: 'file' }, /the hard link '\/hard' leads to it/],
  [{ path: '/file', type: 'delete' }, /Cannot delete '\/file' in the image: the hard link '\/hard' leads to it/],
];

test('an overlay that cannot be is refused in a sentence', async () => {
  for (const [overlay, why] of WRONG)
    await assert.rejects(merge(OVERLAID, [overlay]), (error: unknown) => {
      assert.ok(error instanceof Fault && error.code === 'invalid', String(error));
      assert.match(error.message, why);
      assert.match(error.message, /^Cannot (?:overlay|delete) '.*' in the image: [^.]*(?:'\.\.')?[^.]*\.$/s);
      return true;
    });
});

test('a link target that mke2fs would get wrong is kept from it', async () => {
  for (const [target, why] of [
    ['t'.repeat(1023), undefined],
    ['t'.repeat(1024), 'a link target of 1024 bytes'],
  ] as const)
    assert.equal((await merge(OVERLAID, [{ path: '/new', type: 'symlink', target }])).scan.needs_tree, why);
});

test('what is deleted is gone with all below it, comes not back as a default, and may be put anew', async () => {
  const bytes = archive(
    { name: 'etc', type: '5' },
    { name: 'opt/deep/a', data: 'x' }, // its folders the archive leaves out
    { name: 'opt/deep/b', data: 'x' },
    { name: 'etc/hosts', data: 'theirs' },
    { name: 'etc/conf.d', type: '5' },
    { name: 'etc/conf.d/a', data: 'a'.repeat(10_000) },
    { name: 'etc/conf.d/', type: '5', mode: 0o700 }, // a folder may be there twice
    { name: 'etc/conf.dx', data: 'kept' },
    { name: 'one', data: 'linked' },
    { name: 'two', type: '1', link: 'one' },
    { name: 'etc/link', type: '2', link: 'conf.d' },
  );
  const before = await scan(bytes);
  const {
    tar,
    scan: found,
    plan,
  } = await merge(
    bytes,
    [
      { path: '/opt', type: 'delete' },
      { path: '/etc/link', type: 'delete' }, // the link, not what it leads to
      { path: '/etc/conf.d', type: 'delete' },
      { path: '/etc/conf.d/b', type: 'file', data: Buffer.from('anew') },
      { path: '/etc/hosts', type: 'delete' },
      { path: '/two', type: 'delete' },
      { path: '/one', type: 'delete' },
      { path: '/nowhere/at/all', type: 'delete' },
      { path: '/etc/gone', type: 'file' },
      { path: '/etc/gone', type: 'delete' },
    ],
    () => [
      { path: 'etc/hosts', type: 'file', data: Buffer.from('default'), when: 'missing' },
      { path: 'opt/below', type: 'file', data: Buffer.from('default') },
      { path: 'etc/conf.d/b', type: 'file', data: Buffer.from('default') },
    ],
  );
  const names = ['./', 'etc', 'etc/conf.dx', 'etc/conf.d/', 'etc/conf.d/b'];
  assert.deepEqual(await gnuNames(await write(tar)), names);
  assert.deepEqual([...found.tree.nodes.keys()], ['', 'etc', 'etc/conf.dx', 'etc/conf.d', 'etc/conf.d/b']);
  assert.equal(await textIn(tar, 'etc/conf.d/b'), 'anew');
  // what goes takes no room: three blocks of a, one each of the others
  assert.equal(before.blocks, 3 + 5);
  assert.equal(plan.blocks, 5, 'three folders, two files of one block');
});

const BUSY = [
  { name: 'bin', type: '5' },
  { name: 'bin/busybox', mode: 0o755, data: 'x' },
  { name: 'sbin/init', type: '2', link: '../bin/busybox' },
];

const label = { template: null, template_version: null, rootfs: null, rootfs_sha256: null, agent_version: '9' };
/** The text of a file of the merged archive, after the overlays and the defaults of that init. */
const laid = async (items: Item[], more: Partial<GuestOptions> & { overlays?: Overlay[] } = {}) => {
  const { overlays = [], ...options } = more;
  const { tar, scan: found } = await merge(archive(...items), overlays, now => {
    const facts = factsOf(now);
    return guestOverlays(now, facts, { name: 'x', init: facts.init, agent: Buffer.from('agent'), label, ...options });
  });
  const path = await write(tar);
  const text = async (name: string) => (await run(['tar', '-xOf', path, name])).stdout;
  return { nodes: found.tree.nodes, text, path };
};

const SBIN: Item[] = [
  { name: 'usr/sbin', type: '5' },
  { name: 'sbin', type: '2', link: 'usr/sbin' },
];

test('every image has the agent, its label and what a system needs', async () => {
  const { nodes, text } = await laid([
    ...SBIN,
    { name: 'usr/sbin/halt', data: 'theirs' },
    { name: 'etc/hosts', data: 'theirs' },
  ]);
  assert.equal(nodes.get('usr/lib/nexus/nexus-agent')?.mode, 0o755);
  assert.equal(nodes.get('usr/sbin/reboot')?.target, '/usr/lib/nexus/nexus-agent');
  assert.equal(nodes.get('usr/sbin/halt')?.kind, 'file');
  assert.equal(nodes.get('tmp')?.mode, 0o1777);
  for (const name of ['proc', 'sys', 'dev', 'run']) assert.equal(nodes.get(name)?.kind, 'dir', name);
  assert.equal(await text('etc/hosts'), 'theirs');
  assert.equal(await text('etc/hostname'), 'nexus\n');
  assert.match(await text('etc/fstab'), /^\/dev\/vda\t\/\text4\t/m);
  assert.equal(await text('etc/resolv.conf'), 'nameserver 127.0.0.1\n');
  assert.ok(!nodes.has('etc/nexus/environment') && !nodes.has('etc/profile'));
  const dangling = await laid([...SBIN, { name: 'etc/resolv.conf', type: '2', link: '/run/x' }]);
  assert.equal(dangling.nodes.get('etc/resolv.conf')?.target, '/run/x', 'a link is there, wherever it leads');
});

test('the label says what the image was made from, and nothing in which two builds of it differ', async () => {
  const one = { ...label, template: 'base "x"', template_version: 3, rootfs: 'debian:12' };
  const { text } = await laid([...SBIN, { name: 'etc/os-release', data: 'PRETTY_NAME="Test 1"\n' }], { label: one });
  assert.equal(
    await text('etc/nexus/image.yaml'),
    'image: null\nimage_name: null\nbuild: null\ntemplate: "base \\"x\\""\ntemplate_version: 3\nos: "Test 1"\n' +
      'init: "agent"\narch: null\nrootfs: "debian:12"\nrootfs_sha256: null\nagent_version: "9"\n',
  );
});

test("a template's overlay wins over every default, by what it puts and by what it deletes", async () => {
  const put = (path: string): Overlay => ({ path, type: 'file', data: Buffer.from('mine') });
  const paths = ['hostname', 'hosts', 'fstab', 'resolv.conf', 'nexus/image.yaml', 'systemd/system/nexus-agent.service'];
  const items = [file('usr/lib/systemd/systemd'), { name: 'lib', type: '2', link: 'usr/lib' }];
  const { text, nodes } = await laid(items, {
    overlays: [
      ...paths.map(path => put(`/etc/${path}`)),
      put('/lib/nexus/nexus-agent'),
      { path: '/sbin', type: 'delete' },
    ],
  });
  for (const path of [...paths.map(path => `etc/${path}`), 'usr/lib/nexus/nexus-agent'])
    assert.equal(await text(path), 'mine', path);
  assert.ok(!nodes.has('sbin/init'));
  // what an overlay makes of the system counts
  const release = await laid(items, {
    overlays: [
      { path: '/etc/os-release', type: 'file', data: Buffer.from('PRETTY_NAME=Mine') },
      { path: '/usr/lib/systemd', type: 'delete' },
    ],
  });
  assert.match(await release.text('etc/nexus/image.yaml'), /^os: "Mine"\ninit: "agent"$/m);
});

test("a template's file where a default needs a folder is named", async () => {
  for (const [path, needs] of [
    ['/etc/nexus', '/etc/nexus/image.yaml'],
    ['/usr/lib', '/usr/lib/nexus/nexus-agent'],
  ] as const)
    await assert.rejects(laid(SBIN, { overlays: [{ path, type: 'file' }] }), {
      code: 'invalid',
      message: `Cannot overlay '${path}' in the image: every image has ${needs}, so it must be a folder or lead to one.`,
    });
});

test('the agent becomes a service of the init that is there', async () => {
  const systemd = await laid([file('usr/lib/systemd/systemd'), { name: 'lib', type: '2', link: 'usr/lib' }]);
  assert.match(
    await systemd.text('etc/systemd/system/nexus-agent.service'),
    /ExecStart=\/usr\/lib\/nexus\/nexus-agent service/,
  );
  assert.ok(systemd.nodes.has('etc/systemd/system/multi-user.target.wants/nexus-agent.service'));
  assert.equal(systemd.nodes.get('sbin/init')?.target, '/lib/systemd/systemd');
  assert.equal(
    systemd.nodes.get('usr/lib/systemd/system-shutdown/nexus-shutdown')?.target,
    '/usr/lib/nexus/nexus-agent',
  );
  assert.ok(!systemd.nodes.has('sbin/reboot'));
  const openrc = await laid([...BUSY, file('sbin/openrc')]);
  assert.equal(openrc.nodes.get('etc/init.d/nexus-agent')?.mode, 0o755);
  assert.ok(openrc.nodes.has('etc/runlevels/default/nexus-agent'));
  assert.ok(!openrc.nodes.has('etc/inittab'));
  const alpine = await laid([...BUSY, file('sbin/openrc'), file('etc/inittab', { data: 'a\n' })]);
  assert.equal(await alpine.text('etc/inittab'), 'a\n::shutdown:/usr/lib/nexus/nexus-agent last\n');
  assert.equal(openrc.nodes.get('sbin/init')?.target, '../bin/busybox');
  await assert.rejects(
    laid([file('a')], { init: 'systemd' }),
    /Cannot build image 'x' with init systemd: the archive has no init/,
  );
  assert.ok((await laid([...BUSY], { init: 'agent' })).nodes.has('sbin/reboot'));
  // BusyBox's init may also be told to leave OpenRC aside
  const aside = await laid([...BUSY, file('sbin/openrc')], { init: 'busybox' });
  assert.match(await aside.text('etc/inittab'), /respawn:.*nexus-agent service/);
});

const AGENT_LINES = '::respawn:/usr/lib/nexus/nexus-agent service\n::shutdown:/usr/lib/nexus/nexus-agent last\n';
const GETTY = '/sbin/getty -L 115200 ttyS0 vt100\n';

test("BusyBox's inittab keeps its lines and gets ours", async () => {
  const none = await (await laid([...BUSY])).text('etc/inittab');
  assert.equal(none, `::ctrlaltdel:/sbin/reboot\n${AGENT_LINES}`);
  const rcs = await (await laid([...BUSY, file('etc/init.d/rcS')])).text('etc/inittab');
  assert.match(rcs, /^::sysinit:\/etc\/init\.d\/rcS\n/);
  const theirs = '# mine\n::sysinit:/sbin/setup a\ntty1::respawn:/bin/sh';
  const inittab = { name: 'etc/inittab', data: theirs, mode: 0o640, gid: 7 };
  const kept = await laid([...BUSY, file('sbin/setup'), inittab]);
  assert.equal(await kept.text('etc/inittab'), `${theirs}\n${AGENT_LINES}`);
  const again = await laid([...BUSY, { name: 'etc/inittab', data: `${theirs}\n${AGENT_LINES}` }]);
  assert.equal(await again.text('etc/inittab'), `${theirs}\n${AGENT_LINES}`, 'an image of an image');
  assert.deepEqual([kept.nodes.get('etc/inittab')?.mode, kept.nodes.get('etc/inittab')?.gid], [0o640, 7]);
  await assert.rejects(laid([...BUSY, { name: 'etc/inittab', data: 'x'.repeat(70_000) }]), /longer than 64 KiB/);
  // one out of an overlay gets them, too: without them nothing would start the agent
  const mine: Overlay = { path: '/etc/inittab', type: 'file', data: Buffer.from('::once:/mine') };
  const overlaid = await laid([...BUSY, inittab], { overlays: [mine] });
  assert.equal(await overlaid.text('etc/inittab'), `::once:/mine\n${AGENT_LINES}`);
  const deleted = await laid([...BUSY, inittab], { overlays: [{ path: '/etc/inittab', type: 'delete' }] });
  assert.ok(!deleted.nodes.has('etc/inittab'));
});

test('a login on the serial console, where there is a program for it and none is there', async () => {
  const getty: Item = { name: 'sbin/getty', type: '2', link: '/bin/busybox' };
  const text = async (...items: Item[]) => (await laid([...BUSY, ...items])).text('etc/inittab');
  assert.ok((await text(getty)).endsWith(`ttyS0::respawn:${GETTY}${AGENT_LINES}`));
  const has = (data: string): Item => ({ name: 'etc/inittab', data });
  assert.ok((await text(getty, has('#ttyS0::respawn:x\n'))).includes(`ttyS0::respawn:${GETTY}`));
  assert.ok(!(await text(getty, has('ttyS0::askfirst:/bin/sh\n'))).includes(GETTY));
  assert.ok(!(await text(has('a\n'))).includes('getty'));
  assert.ok((await text(getty, file('sbin/openrc'), has('a\n'))).includes(`ttyS0::respawn:${GETTY}`));
  // sysvinit has identifiers and run levels
  const sysv = [{ name: 'sbin/init', data: 'x' }, file('sbin/openrc'), { name: 'sbin/getty', data: 'x' }];
  assert.equal(await (await laid([...sysv, has('a')])).text('etc/inittab'), `a\nS0:2345:respawn:${GETTY}`);
});

test('the environment reaches sh as it was meant, in whatever order it was given', async () => {
  const environment = { B: 'two words', A: `"'\\$HOME\`id\`%h`, PATH: '/opt/bin:/bin', NL: 'one\ntwo=2\n', _e: '' };
  const { path, nodes, text } = await laid([...SBIN], { environment });
  const root = join(dir, 'environment');
  await run(['mkdir', root]);
  await run(['tar', '-xf', path, '-C', root, 'etc']);
  const script = `. ${root}/etc/nexus/environment; printf '%s|' "$A" "$B" "$NL" "$PATH" "$_e"`;
  const { stdout } = await run(['/bin/sh', '-c', script]);
  assert.equal(stdout, `${environment.A}|${environment.B}|${environment.NL}|${environment.PATH}||`);
  assert.match(await text('etc/profile.d/nexus.sh'), /^ {2}\. \/etc\/nexus\/environment$/m);
  assert.match(await text('etc/profile'), /profile\.d/);
  assert.equal(nodes.get('etc/nexus/environment')?.mode, 0o644);
  const turned = Object.fromEntries(Object.entries(environment).reverse());
  const other = await laid([...SBIN], { environment: turned });
  assert.equal(await other.text('etc/nexus/environment'), await text('etc/nexus/environment'));
  const openrc = await laid([...BUSY, file('sbin/openrc')], { environment });
  assert.equal(await openrc.text('etc/rc.conf.d/nexus.conf'), 'rc_env_allow="A B NL PATH _e"\n');
  for (const name of ['', '1A', 'A-B', 'A=B', 'A\nB'])
    await assert.rejects(laid([...SBIN], { environment: { [name]: 'x' } }), { code: 'invalid' });
  await assert.rejects(laid([...SBIN], { environment: { A: 'x\0' } }), { code: 'invalid' });
});
