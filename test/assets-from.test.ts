/** Downloads through the door: from a URL or a file, several at once, refused, canceled, killed in the middle. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import type { FaultCode } from '../src/api/fault.ts';
import type { Job } from '../src/api/job.ts';
import { poll } from '../src/lib/deadline.ts';
import { runAny } from '../src/lib/proc.ts';
import { audit } from './kit/audit.ts';
import { rejects } from './kit/behave.ts';
import { sha256, xz } from './kit/layouts.ts';
import {
  ANVIL,
  FIRECRACKER,
  kernelElf,
  minirootfs,
  openSources,
  type Sources,
  sayingElf,
  sourced,
} from './kit/sources.ts';
import { archive, type Item } from './kit/tar.ts';
import { REPO, type World } from './kit/world.ts';

let sources: Sources;
let w: World;
let files = '';
const opened = new AsyncDisposableStack();
before(async () => {
  sources = opened.use(await openSources());
  files = await mkdtemp(join(tmpdir(), 'nexus-files-'));
  opened.defer(() => rm(files, { recursive: true, force: true }));
  w = opened.use(await sourced(sources));
});
after(() => opened.disposeAsync());

const ended = (job: Job): Promise<Job> => w.client.job.wait({ job: job.id, timeout_ms: 120_000 });
const landed = async (asked: Promise<Job>): Promise<string> => {
  const job = await ended(await asked);
  assert.equal(job.state, 'succeeded', JSON.stringify(job.error));
  return job.result_id ?? '';
};
const refused = async (asked: Promise<Job>, code: FaultCode, words: RegExp): Promise<void> => {
  const job = await ended(await asked);
  assert.deepEqual([job.state, job.error?.code], ['failed', code], JSON.stringify(job.error));
  assert.match(job.error?.detail ?? '', words);
};
const file = async (name: string, data: Buffer): Promise<string> => {
  await writeFile(join(files, name), data);
  return join(files, name);
};
/** What is in the data directory of a kind. */
const held = (kind: 'kernels' | 'rootfs' | 'firecrackers' | 'tmp'): Promise<string[]> =>
  readdir(join(w.data_dir, kind));

const AT = `/${ANVIL}/releases/download`;

test('a URL that a provider would have asked for is proven as that provider does', async () => {
  const from = `${sources.mirror.origin}${AT}/v6.18.2/vmlinux-6.18.2-x86_64.xz`;
  const id = await landed(w.client.kernel.download({ from }));
  const kernel = await w.client.kernel.inspect({ kernel: id });
  assert.deepEqual([kernel.version, kernel.provider, kernel.proofs], ['6.18.2', 'anvil', ['pgp', 'sha256']]);
  await rejects(w.client.kernel.download({ from, version: '6.18.9' }), 'invalid', /it is 6\.18\.2, x86_64/);
  await refused(w.client.kernel.download({ from, sha256: '0'.repeat(64) }), 'unverified', /SHA-256/);
  await w.client.kernel.remove({ kernel: id });
});

test('any other URL needs its hash, which is of what comes from there', async () => {
  const tar = minirootfs('3.21.9');
  const url = sources.mirror.put('/elsewhere/alpine-minirootfs-3.21.9-x86_64.tar.gz', tar);
  await rejects(
    w.client.rootfs.download({ from: url, distro: 'alpine' }),
    'invalid',
    /nothing proves what comes from it/,
  );
  await rejects(w.client.rootfs.download({ from: url, sha256: sha256(tar) }), 'invalid', /Name the distribution/);
  await rejects(
    w.client.kernel.download({ from: url.replace('https', 'http'), sha256: sha256(tar) }),
    'invalid',
    /https/i,
  );
  await rejects(w.client.kernel.download({ sha256: sha256(tar) }), 'invalid', /goes with a URL or a file/);
  const said = await w.ctl('rootfs', 'download', '--from', url, '--sha256', sha256(tar), '--distro', 'alpine');
  assert.equal(said.code, 0, said.stderr);
  const rootfs = await w.client.rootfs.inspect({ rootfs: 'alpine:3.21.9' });
  assert.deepEqual([rootfs.id, rootfs.provider, rootfs.proofs], [said.stdout.trim(), null, ['sha256']]);
  await refused(
    w.client.rootfs.download({ from: url, sha256: sha256('other'), distro: 'alpine', version: '1.1' }),
    'unverified',
    /its SHA-256 is/,
  );
  await w.client.rootfs.remove({ rootfs: rootfs.id });
  assert.deepEqual(await held('rootfs'), []);
});

test('a file of this host: as it is, or packed; its hash is compared if it was given', async () => {
  const elf = kernelElf();
  const plain = await file('vmlinux-7.1.2', elf);
  const id = await landed(w.client.kernel.download({ from: plain }));
  const kernel = await w.client.kernel.inspect({ kernel: '7.1.2' });
  assert.deepEqual([kernel.id, kernel.sha256, kernel.proofs], [id, sha256(elf), ['none']]);
  const packed = await file('vmlinux-7.1.2.xz', await xz(elf));
  assert.equal(
    await landed(w.client.kernel.download({ from: packed })),
    id,
    'the same version with the same content is one',
  );
  const again = await landed(w.client.kernel.download({ from: packed, version: '7.1.3' }));
  const inode = async (one: string) => (await stat(join(w.data_dir, 'kernels', one, 'vmlinux'))).ino;
  assert.equal(await inode(again), await inode(id), 'the same content is on disk once');
  await refused(w.client.kernel.download({ from: plain, sha256: '0'.repeat(64) }), 'unverified', /SHA-256/);
  await rejects(
    w.client.kernel.download({ from: 'vmlinux-7.1.2' }),
    'invalid',
    /neither an https URL nor an absolute path/,
  );
  await refused(w.client.kernel.download({ from: join(files, 'vmlinux-1.1.1') }), 'not_found', /vmlinux-1\.1\.1/);
  for (const [name, data] of [
    ['page-1.1.html', Buffer.from('<!doctype html><p>Please log in.')],
    ['noise-1.1', randomBytes(5000)],
  ] as const) {
    const from = await file(name, data);
    await refused(w.client.kernel.download({ from }), 'unsupported', /not an ELF/);
    await refused(w.client.rootfs.download({ from, distro: 'x' }), 'unsupported', /not a tar archive/);
    await refused(w.client.firecracker.download({ from }), 'unsupported', /not an ELF/);
  }
  for (const kernel of [id, again]) await w.client.kernel.remove({ kernel });
  assert.deepEqual([await held('kernels'), await held('rootfs'), await held('firecrackers')], [[], [], []]);
});

test('a Firecracker, or the jailer beside it, that is missing, for another processor, a link, or of another version, is refused', async () => {
  const jailer = { name: 'release-v1.1.1-x86_64/jailer-v1.1.1-x86_64', mode: 0o755, data: sayingElf('Jailer') };
  const tgz = (item: Item) => gzipSync(archive(item, jailer));
  const name = (version: string) => `release-v${version}-x86_64/firecracker-v${version}-x86_64`;
  const other = sayingElf('Firecracker v1.1.1');
  other.writeUInt16LE(183, 18);
  const program = { name: name('1.1.1'), mode: 0o755, data: sayingElf('Firecracker v1.1.1') };
  const foreign = Buffer.from(jailer.data);
  foreign.writeUInt16LE(183, 18);
  const beside = (...items: Item[]) => gzipSync(archive(program, ...items));
  const good = await file('firecracker-v1.1.1-x86_64.tgz', beside(jailer));
  await w.client.firecracker.remove({ firecracker: await landed(w.client.firecracker.download({ from: good })) });
  const cases: [Buffer, RegExp, FaultCode][] = [
    [tgz({ name: name('1.1.1'), mode: 0o755, data: other }), /not for x86_64/, 'unsupported'],
    [
      tgz({ name: name('1.1.1'), mode: 0o755, data: sayingElf('Firecracker v1.1.0') }),
      /its version is 1\.1\.0, not 1\.1\.1/,
      'unsupported',
    ],
    [tgz({ name: name('1.1.1'), type: '2', link: '/bin/true' }), /firecracker-v1\.1\.1/, 'unsupported'],
    [tgz({ name: name('1.1.1'), mode: 0o755, data: 'no program' }), /not an ELF/, 'unsupported'],
    [
      tgz({ name: `${name('1.1.1')}.debug`, mode: 0o755, data: program.data }),
      /firecracker-v1\.1\.1.* not in it/,
      'unsupported',
    ],
    [beside(), /jailer-v1\.1\.1-x86_64.* not in it/, 'unsupported'],
    [beside({ ...jailer, name: `${jailer.name}.debug` }), /jailer-v1\.1\.1-x86_64.* not in it/, 'unsupported'],
    [beside({ ...jailer, data: foreign }), /Cannot use this jailer: .*not for x86_64/, 'unsupported'],
    [beside({ ...jailer, data: 'no program' }), /Cannot use this jailer: .*not an ELF/, 'unsupported'],
    [beside({ name: jailer.name, type: '2', link: '/bin/true' }), /jailer-v1\.1\.1.*no regular file/, 'unsupported'],
    [beside({ name: jailer.name, type: '1', link: program.name }), /jailer-v1\.1\.1.*no regular file/, 'unsupported'],
    [beside(jailer, jailer), /jailer-v1\.1\.1.*twice/, 'unsupported'],
  ];
  const url = `/${FIRECRACKER}/releases/download/v1.1.1/firecracker-v1.1.1-x86_64.tgz`;
  for (const [data, words, code] of cases) {
    const from = await file('firecracker-v1.1.1-x86_64.tgz', data);
    await refused(w.client.firecracker.download({ from, sha256: sha256(data) }), code, words);
    sources.mirror.store(url, data);
    sources.mirror.store(`${url}.sha256.txt`, `${sha256(data)}  firecracker-v1.1.1-x86_64.tgz\n`);
    await refused(w.client.firecracker.download({ from: `${sources.mirror.origin}${url}` }), code, words);
    assert.deepEqual([await held('firecrackers'), await held('tmp')], [[], []]);
  }
});

test('what was spoiled on the way or at its place: unverified, and nothing lands', async () => {
  const { mirror } = sources;
  const base = `${AT}/v6.12.40`;
  const name = 'vmlinux-6.12.40-x86_64.xz';
  for (const [path, at] of [
    [name, 20_000],
    ['SHA256SUMS', 3],
    ['SHA256SUMS.asc', 150],
  ] as const) {
    mirror.misbehave(`${base}/${path}`, { flip: at });
    await refused(
      w.client.kernel.download({ version: '6.12.40' }),
      'unverified',
      /Cannot trust|SHA-256|signature|armor/i,
    );
    mirror.misbehave(`${base}/${path}`, undefined);
  }
  mirror.misbehave(`${base}/${name}`, { html: true });
  await refused(w.client.kernel.download({ version: '6.12.40' }), 'unverified', /a web page came instead of a file/);
  mirror.misbehave(`${base}/${name}`, { redirect: `${mirror.origin}${AT}/v6.18.9/vmlinux-6.18.9-x86_64.xz` });
  await refused(w.client.kernel.download({ version: '6.12.40' }), 'unverified', /SHA-256/);
  mirror.misbehave(`${base}/${name}`, undefined);
  const tgz = `/${FIRECRACKER}/releases/download/v1.12.0/firecracker-v1.12.0-x86_64.tgz`;
  mirror.misbehave(tgz, { flip: 100 });
  await refused(w.client.firecracker.download({ version: '1.12.0' }), 'unverified', /SHA-256|gzip/);
  mirror.misbehave(tgz, undefined);
  assert.deepEqual([await held('kernels'), await held('firecrackers'), await held('tmp')], [[], [], []]);
});

test('GitHub limits those without a token: the fault says until when; a token is taken from a file or the environment', async () => {
  const { anvil } = sources;
  anvil.token = 'sesame';
  anvil.reset_s = Math.floor(Date.UTC(2031, 0, 2, 3, 4, 5) / 1000);
  try {
    const fault = await rejects(
      w.client.kernel.available({}),
      'host',
      /its rate limit is used up; it answers again at 2031-01-02T03:04:05Z/,
    );
    assert.match(fault.hint ?? '', /NEXUS_GITHUB_TOKEN/);
    const job = await ended(await w.client.kernel.download({}));
    assert.deepEqual([job.error?.code, job.error?.detail], ['host', fault.message]);
    assert.match(job.error?.hint ?? '', /NEXUS_GITHUB_TOKEN.* Or: nexusctl kernel download --provider debian$/);
    await w.client.provider.update({
      provider: 'anvil',
      config: { token_file: await file('token', Buffer.from('sesame\n')) },
    });
    assert.equal((await w.client.kernel.available({})).length, 3);
    await w.client.provider.update({ provider: 'anvil', config: { token_file: '' } });
    await w.stop();
    const told = () => sources.mirror.seen.filter(one => one.headers.authorization !== undefined).length;
    const before = told();
    await w.start({ NEXUS_GITHUB_TOKEN: 'sesame' });
    await rejects(w.client.kernel.available({}), 'host', /rate limit/);
    assert.equal(told(), before, "the environment's token is for GitHub, whatever the row names");
    await w.stop();
    await w.start({ NEXUS_GITHUB_TOKEN: 'sesame', NEXUS_GITHUB_API: sources.mirror.origin });
    assert.equal((await w.client.kernel.available({})).length, 3);
    assert.ok(
      sources.mirror.seen.every(one => one.headers.authorization === undefined || one.url.startsWith('/api/')),
      'no other place saw a token',
    );
  } finally {
    anvil.token = undefined;
  }
});

test('what is on disk counts by what its row demands now; a row that was tightened has it fetched and proven', async () => {
  const { mirror } = sources;
  const elf = kernelElf();
  const url = mirror.put('/tight/vmlinux-8.1.1', elf);
  const ask = () => w.client.kernel.download({ provider: 'tight', version: '8.1.1' });
  const times = () => sources.asked('/vmlinux-8.1.1');
  await w.client.provider.create({
    name: 'tight',
    kind: 'kernel',
    unverified: true,
    pipeline: [{ stage: 'http', url }],
  });
  const id = await landed(ask());
  assert.deepEqual((await w.client.kernel.inspect({ kernel: id })).proofs, ['none']);
  assert.deepEqual([await landed(ask()), times()], [id, 1], 'nothing has changed: not fetched again');
  const list = mirror.put('/tight/sums', `${'0'.repeat(64)}  vmlinux-8.1.1\n`);
  await w.client.provider.update({
    provider: 'tight',
    unverified: false,
    pipeline: [
      { stage: 'http', url },
      { stage: 'sha256', expect: { url: list, name: 'vmlinux-8.1.1' } },
    ],
  });
  await refused(ask(), 'unverified', /SHA-256/);
  mirror.put('/tight/sums', `${sha256(elf)}  vmlinux-8.1.1\n`);
  const before = times();
  assert.equal(await landed(ask()), id);
  assert.equal(times(), before + 1);
  const kernel = await w.client.kernel.inspect({ kernel: id });
  assert.deepEqual([kernel.provider, kernel.proofs], ['tight', ['sha256']]);
  assert.deepEqual([await landed(ask()), times()], [id, before + 1]);
  await w.client.kernel.remove({ kernel: id });
  await w.client.provider.remove({ provider: 'tight' });
});

test('a kernel that is mended loses the initramfs files that were made of it', async () => {
  const id = await landed(w.client.kernel.download({ version: '6.18.2' }));
  const other = 'krn_01k9zzzzzzzzzzzzzzzzzzzzzz-0123.cpio';
  for (const name of [`${id}-0123.cpio`, other]) await writeFile(join(w.data_dir, 'initrd', name), 'of the bad files');
  const path = join(w.data_dir, 'kernels', id, 'vmlinux');
  const data = await readFile(path);
  await writeFile(path, Buffer.from(data).fill(0xff, 9000, 9008));
  await rejects(w.client.kernel.verify({ kernel: id }), 'unverified', /vmlinux/);
  assert.equal(await landed(w.client.kernel.download({ version: '6.18.2' })), id);
  assert.ok((await readFile(path)).equals(data));
  assert.deepEqual(await readdir(join(w.data_dir, 'initrd')), [other]);
  await rm(join(w.data_dir, 'initrd', other));
  await w.client.kernel.remove({ kernel: id });
});

test('one download for all who ask for it by any name; who is canceled leaves, the last one ends it', async () => {
  const asset = `${AT}/v6.18.9/vmlinux-6.18.9-x86_64.xz`;
  const from = `${sources.mirror.origin}${asset}`;
  const asks = [
    {},
    { version: '6.18.9' },
    { version: 'v6.18' },
    { from },
    { provider: 'anvil', arch: 'x86_64' as const },
  ];
  sources.mirror.misbehave(asset, { stall: 10_000 });
  const before = sources.asked('vmlinux-6.18.9-x86_64.xz');
  const stalled = await Promise.all(asks.map(ask => w.client.kernel.download(ask)));
  const fetching = (id: string) =>
    poll('the download', 30_000, async () => {
      const { progress } = await w.client.job.get({ job: id });
      return progress?.unit === 'bytes' && progress.done > 0 ? true : undefined;
    });
  await Promise.all(stalled.map(job => fetching(job.id)));
  assert.equal(sources.asked('vmlinux-6.18.9-x86_64.xz') - before, 1);
  const [first, ...others] = stalled;
  assert.ok(first);
  assert.equal((await w.client.job.cancel({ job: first.id })).state, 'canceled');
  assert.equal((await w.client.job.get({ job: others[0]?.id ?? '' })).state, 'running', 'the others go on');
  for (const job of others) await w.client.job.cancel({ job: job.id }).catch(() => {}); // some are one job
  assert.deepEqual([await held('kernels'), await held('tmp')], [[], []]);
  sources.mirror.misbehave(asset, undefined);
  const ids = await Promise.all(asks.map(ask => landed(w.client.kernel.download(ask))));
  assert.equal(new Set(ids).size, 1);
  assert.equal(sources.asked('vmlinux-6.18.9-x86_64.xz') - before, 2);
  await w.client.kernel.remove({ kernel: ids[0] ?? '' });
});

test('canceled after any time: it has landed or nothing is left', async () => {
  const ends = { canceled: 0, succeeded: 0 };
  const version = '6.18.2';
  const from = performance.now();
  await w.client.kernel.remove({ kernel: await landed(w.client.kernel.download({ version })) });
  const step = (performance.now() - from) / 16; // finer than any of its stages; a busy machine takes longer over each
  for (let n = 0; n < 24 || ends.succeeded < 3; n++) {
    assert.ok(n < 200, 'some day it lands');
    const job = await w.client.kernel.download({ version });
    await new Promise(resolve => setTimeout(resolve, n * step));
    const end = await w.client.job.cancel({ job: job.id }).catch(() => w.client.job.get({ job: job.id }));
    const there = (await w.client.kernel.list({})).map(kernel => kernel.id);
    assert.ok(end.state === 'canceled' || end.state === 'succeeded', JSON.stringify(end));
    ends[end.state]++;
    assert.deepEqual(there, end.state === 'succeeded' ? [end.result_id] : []);
    assert.deepEqual([await held('kernels'), await held('tmp')], [there, []]);
    for (const kernel of there) await w.client.kernel.remove({ kernel });
  }
  assert.ok(ends.canceled >= 3, `${ends.canceled} canceled, ${ends.succeeded} landed`);
  assert.deepEqual(await audit(w), []);
});

test('a second daemon on the same directory is refused and harms nothing; a killed one leaves nothing', async () => {
  const asset = `/${FIRECRACKER}/releases/download/v1.12.0/firecracker-v1.12.0-x86_64.tgz`;
  sources.mirror.misbehave(asset, { stall: 50 });
  const job = await w.client.firecracker.download({ version: '1.12.0' });
  await poll(
    'the download',
    30_000,
    async () => (sources.asked('x86_64.tgz') > 0 && (await held('tmp')).length > 1) || undefined,
  );
  const second = await runAny([process.execPath, join(REPO, 'src/main.ts'), 'nexusd', '--data-dir', w.data_dir], {
    env: { ...process.env, ...sources.env },
    timeout_ms: 60_000,
  });
  assert.notEqual(second.code, 0);
  assert.ok((await held('tmp')).length > 1, 'what the first one is at is still there');
  assert.equal((await w.client.job.get({ job: job.id })).state, 'running');
  await w.kill();
  sources.mirror.misbehave(asset, undefined);
  await w.start();
  assert.equal((await w.client.job.get({ job: job.id })).state, 'interrupted');
  assert.deepEqual([await held('tmp'), await held('firecrackers')], [[], []]);
  const id = await landed(w.client.firecracker.download({ version: '1.12.0' }));
  assert.equal(
    sha256(await readFile(join(w.data_dir, 'firecrackers', id, 'firecracker'))),
    (await w.client.firecracker.verify({ firecracker: id })).sha256,
  );
  await w.client.firecracker.remove({ firecracker: id });
});
