/** Templates whose source is not on disk yet: the build fetches it as a download would. And archives that no image can be made of. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import type { Build } from '../src/api/build.ts';
import type { FaultCode } from '../src/api/fault.ts';
import { poll } from '../src/lib/deadline.ts';
import { rejects } from './kit/behave.ts';
import { settle } from './kit/crash_deeds.ts';
import { type Ground, ground } from './kit/ground.ts';
import { sha256, xz } from './kit/layouts.ts';
import { minirootfs, openSources, type Sources } from './kit/sources.ts';
import { archive, type Item } from './kit/tar.ts';
import { templateDeeds } from './kit/templates.ts';

let g: Ground;
let sources: Sources;
let dir = '';
const opened = new AsyncDisposableStack();
const { client, ended, built, clear: clearTemplates } = templateDeeds(() => g);

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-sources-'));
  opened.defer(() => rm(dir, { recursive: true, force: true }));
  sources = opened.use(await openSources());
  g = opened.use(await ground('qemu', { env: sources.env }));
  await sources.point(g.w);
  await settle(() => g);
});
after(() => opened.disposeAsync());

/** Takes the archives too that builds have fetched. */
const clear = async (): Promise<void> => {
  await clearTemplates();
  for (const { id, distro } of await client().rootfs.list({}))
    if (distro !== 'debian') await client().rootfs.remove({ rootfs: id });
};

const logOf = async (build: { id: string }): Promise<string> => {
  let text = '';
  for await (const message of client().build.logs({ build: build.id }))
    if (message.type === 'log') text += `${message.line}\n`;
  return text;
};

/** A build of that source fails so, and there is nothing that was not there before. */
const fails = async (
  source: string,
  code: FaultCode,
  words: RegExp,
  more: Partial<Parameters<Ground['w']['client']['template']['create']>[0]> = {},
): Promise<Build> => {
  const archives = (await client().rootfs.list({})).length;
  await client().template.create({ name: 'tpl', source, ...more });
  const build = await ended(await client().build.trigger({ template: 'tpl' }));
  const { detail = '' } = build.error ?? {};
  assert.deepEqual([build.state, build.error?.code, build.image_id], ['failed', code, null], `${source}: ${detail}`);
  assert.match(detail, words);
  assert.ok(/^[A-Z].*\.$/.test(detail) && !/\n/.test(detail), `one sentence: ${detail}`);
  assert.deepEqual(
    (await client().image.list()).map(image => image.name),
    ['base'],
  );
  // what was fetched and is what it should be stays, whatever is in it
  if (code === 'unverified' || build.rootfs_id === null)
    assert.equal((await client().rootfs.list({})).length, archives);
  await clear();
  return build;
};

const TAR = '.tar.gz';

test('alpine:3.21 that is not on disk: builds fetch it once, verified as a download is, and say so', async () => {
  await client().template.create({ name: 'tpl', source: 'alpine:3.21' });
  const builds = await Promise.all([1, 2].map(() => client().build.trigger({ template: 'tpl' })));
  const [one, two] = await Promise.all(builds.map(ended));
  assert.deepEqual([one?.state, two?.state], ['success', 'success'], `${one?.error?.detail} ${two?.error?.detail}`);
  assert.equal(one?.inputs_sha256, two?.inputs_sha256);
  assert.notEqual(one?.image_id, two?.image_id);
  assert.match(await logOf(builds[0] ?? { id: '' }), /^fetching alpine:3\.21$/m);
  const { rootfs } = await client().image.inspect({ image: 'tpl' });
  assert.deepEqual([rootfs?.version, rootfs?.provider, rootfs?.proofs], ['3.21.3', 'alpine', ['sha256']]);
  await built('tpl');
  assert.equal(sources.asked(TAR), 1, 'fetched once');
  await clear();

  const path = '/alpine/v3.21/releases/x86_64/alpine-minirootfs-3.21.3-x86_64.tar.gz';
  sources.mirror.misbehave(path, { flip: 1000 });
  await fails('alpine:3.21', 'unverified', /SHA-256/);
  sources.mirror.misbehave(path, { status: 404 });
  await fails('alpine:3.21', 'not_found', /'3\.21\.3'.*'alpine'/);
  sources.mirror.misbehave(path, undefined);
  sources.mirror.misbehave(`${path}.sha256`, { status: 404 });
  await fails('alpine:3.21.3', 'not_found', /sha256: it is not there/);
  sources.mirror.misbehave(`${path}.sha256`, undefined);
  await fails('alpine:3.99', 'not_found', /3\.99/);
});

test('what a source is asked meanwhile keeps its folder: gc does not take it', async () => {
  const tmp = join(g.w.data_dir, 'tmp');
  const path = '/alpine/latest-stable/releases/x86_64/latest-releases.yaml';
  sources.mirror.misbehave(path, { silent: true });
  const asked = client().rootfs.available({ provider: 'alpine' });
  const [name] = await poll('the folder of a question', 20_000, async () => {
    const names = await readdir(tmp);
    return names.length > 0 ? names : undefined;
  });
  assert.match(name ?? '', /^look_/);
  assert.deepEqual((await client().daemon.gc({})).items, []);
  assert.deepEqual(await readdir(tmp), [name]);
  sources.mirror.misbehave(path, undefined);
  sources.mirror.cut();
  await asked.catch(() => {});
  assert.deepEqual(await readdir(tmp), []);
});

test("a URL under a provider's tree is proven as that provider does, any other by its hash", async () => {
  const { origin } = sources.mirror;
  const url = `${origin}/alpine/v3.20/releases/x86_64/alpine-minirootfs-3.20.6-x86_64.tar.gz`;
  await client().template.create({ name: 'tpl', source: url });
  const { rootfs } = (await built('tpl')).image;
  assert.deepEqual([rootfs?.distro, rootfs?.version, rootfs?.provider], ['alpine', '3.20.6', 'alpine']);
  await clear();

  const data = minirootfs('1.2.3');
  const other = sources.mirror.put('/files/My-Rootfs.tar.gz', data);
  const create = (...more: string[]) => g.w.ctl('template', 'create', 'tpl', '--source', ...more);
  const naked = await create(other);
  assert.deepEqual([naked.code, /nothing proves what comes from it/.test(naked.stderr)], [2, true], naked.stderr);
  assert.match(naked.stderr, /--sha256/);
  const plain = await create(other.replace('https', 'http'), '--sha256', sha256(data));
  assert.deepEqual([plain.code, /https/.test(plain.stderr)], [2, true], plain.stderr);
  const made = await create(other, '--sha256', sha256(data));
  assert.equal(made.code, 0, made.stderr);
  const first = await built('tpl');
  assert.deepEqual(
    [first.image.rootfs?.distro, first.image.rootfs?.provider, first.image.rootfs?.proofs],
    ['my-rootfs', null, ['sha256']],
  );
  assert.equal((await built('tpl')).build.inputs_sha256, first.build.inputs_sha256);
  await rejects(client().template.update({ template: 'tpl', sha256: null }), 'invalid', /nothing proves/);
  await clear();
  await fails(other, 'unverified', /SHA-256/, { sha256: sha256('another') });
  await fails(`${origin}/files/none.tar`, 'not_found', /none\.tar/, { sha256: sha256('none') });
});

const file = (name: string, more: Partial<Item> = {}): Item => ({ name, data: 'x', ...more });
const BAD: [string, Item[], RegExp][] = [
  ['dots', [file('a/../../b')], /entry 'a\/\.\.\/\.\.\/b' has '\.\.' in its name\./],
  ['absolute', [file('/etc/passwd')], /absolute name/],
  ['through', [{ name: 'l', type: '2', link: '/tmp' }, file('l/x')], /goes through 'l', which is not a directory/],
  ['outside', [{ name: 'h', type: '1', link: '../../etc/passwd' }], /'\.\.'/],
  ['nowhere', [{ name: 'h', type: '1', link: 'etc/passwd' }], /is a hard link to 'etc\/passwd'/],
  ['twice', [file('a'), file('a')], /'a' is in the archive twice/],
];

test('an archive that no image can be made of: one sentence says why, and nothing is left', async () => {
  const put = async (name: string, data: Buffer): Promise<string> => {
    await writeFile(join(dir, name), data);
    return join(dir, name);
  };
  for (const [name, items, words] of BAD) await fails(await put(`${name}.tar`, archive(...items)), 'invalid', words);
  await fails(await put('empty.tar', archive()), 'unsupported', /it is not a tar archive/);
  const whole = archive(file('a', { data: 'x'.repeat(200_000) }));
  const gz = gzipSync(whole);
  const cut = gz.subarray(0, gz.length - 20);
  await fails(await put('cut.tar.gz', cut), 'unverified', /Cannot unpack gzip: unexpected end/);
  // its hash is right, and it is broken all the same
  const url = sources.mirror.put('/files/cut.tar.gz', cut);
  await fails(url, 'unverified', /Cannot unpack gzip/, { sha256: sha256(cut) });
  await fails(await put('short.tar', whole.subarray(0, 100_352)), 'invalid', /cut off/);
  await fails(await put('wrong.tar.xz', gz), 'unverified', /Cannot unpack xz/);
  await fails(await put('wrong.tar.gz', await xz(whole)), 'unverified', /Cannot unpack gzip: incorrect header/);
  await fails(await put('wrong.tar', gz), 'unsupported', /it is not a tar archive/);
  const large = await put('large.tar', archive(file('a', { data: Buffer.alloc(24 * 1024 * 1024, 'x') })));
  await fails(large, 'invalid', /needs \d+ MiB, the size is 16 MiB/, { size_bytes: 16 * 1024 * 1024 });
  const gone = await put('gone.tar', whole);
  await client().template.create({ name: 'tpl', source: gone });
  await rm(gone);
  const build = await ended(await client().build.trigger({ template: 'tpl' }));
  assert.deepEqual([build.state, build.error?.code], ['failed', 'not_found'], build.error?.detail ?? '');
  await clear();
});
