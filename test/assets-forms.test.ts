/** What people type to have kernels, root file systems and Firecrackers, through the command line, from places laid out as the real ones. */
import assert from 'node:assert/strict';
import { readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { after, before, test } from 'node:test';
import { run, runAny } from '../src/lib/proc.ts';
import { parseBytes } from '../src/lib/size.ts';
import { rejects } from './kit/behave.ts';
import { sha256 } from './kit/layouts.ts';
import { openSources, type Sources, sourced } from './kit/sources.ts';
import { REPO, type World } from './kit/world.ts';

let sources: Sources;
let w: World;
const opened = new AsyncDisposableStack();
before(async () => {
  sources = opened.use(await openSources());
  w = opened.use(await sourced(sources));
});
after(() => opened.disposeAsync());

/** nexusctl, which succeeds; gives what it says. */
const ctl = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await w.ctl(...args);
  assert.equal(code, 0, `nexusctl ${args.join(' ')}\n${stderr}${stdout}`);
  return stdout;
};

/** nexusctl, which fails with that code; gives what it complains of. */
const fails = async (exit: number, ...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await w.ctl(...args);
  assert.equal(code, exit, `nexusctl ${args.join(' ')}\n${stderr}${stdout}`);
  assert.equal(stdout, '');
  return stderr;
};

const json = async (...args: string[]) => JSON.parse(await ctl('--json', ...args));

/** One bit of a file is another, and then it is as it was. */
const withFlippedBit = async (path: string, work: () => Promise<void>): Promise<void> => {
  const [data, { mode }] = [await readFile(path), await stat(path)];
  const other = Buffer.from(data);
  const at = Math.floor(data.length / 3);
  other.writeUInt8(other.readUInt8(at) ^ 4, at);
  await rm(path);
  await writeFile(path, other, { mode });
  await work();
  await rm(path);
  await writeFile(path, data, { mode });
};

test('kernel download 6.18.9: signed, listed, verified; one flipped bit is found; not fetched twice', async () => {
  const { code, stdout, stderr } = await w.ctl('kernel', 'download', '6.18.9');
  assert.equal(code, 0, stderr);
  assert.match(stderr, /^download\n?[\s\S]*Done in /m);
  const id = stdout.trim();
  assert.match(id, /^krn_\w+$/);
  const kernel = await json('kernel', 'inspect', '6.18.9');
  assert.equal(kernel.id, id);
  assert.deepEqual([kernel.version, kernel.provider, kernel.arch], ['6.18.9', 'anvil', 'x86_64']);
  assert.deepEqual(kernel.proofs, ['pgp', 'sha256']);
  assert.equal(kernel.modules_sha256, null);
  assert.match(kernel.source, /\/Work-Fort\/Anvil\/releases\/download\/v6\.18\.9\/vmlinux-6\.18\.9-x86_64\.xz$/);
  const path = join(w.data_dir, 'kernels', id, 'vmlinux');
  assert.equal(sha256(await readFile(path)), kernel.sha256);
  assert.match(await ctl('kernel', 'list'), /6\.18\.9 +x86_64 +anvil +pgp, sha256/);
  assert.equal((await json('kernel', 'verify', '6.18.9')).id, id);
  await withFlippedBit(path, async () => {
    assert.match(await fails(12, 'kernel', 'verify', '6.18.9'), /vmlinux/);
  });
  await ctl('kernel', 'verify', 'v6.18.9');
  const before = sources.asked('vmlinux-6.18.9-x86_64.xz');
  assert.equal((await ctl('kernel', 'download', 'v6.18.9')).trim(), id);
  assert.equal(sources.asked('vmlinux-6.18.9-x86_64.xz'), before, 'it is on disk');
});

test('kernel list --available: releases with a kernel for this processor, from all pages; without it, what is on disk', async () => {
  const versions = (rows: { version: string; on_disk: boolean }[]) => rows.map(r => [r.version, r.on_disk]);
  await ctl('kernel', 'download', '6.18.9');
  assert.deepEqual(versions(await json('kernel', 'list', '--available')), [
    ['6.18.9', true],
    ['6.18.2', false],
    ['6.12.40', false],
  ]);
  assert.deepEqual(versions(await json('kernel', 'list', '--available', '--arch', 'aarch64')), [
    ['6.18.10', false],
    ['6.18.9', false],
    ['6.12.40', false],
  ]);
  assert.deepEqual(
    (await w.client.kernel.available({ provider: 'anvil' })).map(one => one.version),
    ['6.18.9', '6.18.2', '6.12.40'],
  );
  assert.match(
    await ctl('kernel', 'list', '--available'),
    /^VERSION +ARCH +PROVIDER +ON DISK\n6\.18\.9 +x86_64 +anvil +yes\n/,
  );
  assert.deepEqual(
    (await json('kernel', 'list')).map((k: { version: string }) => k.version),
    ['6.18.9'],
  );
});

test('the default version is the newest, a series means its newest, another processor is asked for by --arch', async () => {
  const newest = await json('kernel', 'inspect', (await ctl('kernel', 'download')).trim());
  assert.equal(newest.version, '6.18.9');
  const series = await json('kernel', 'inspect', (await ctl('kernel', 'download', '6.12')).trim());
  assert.equal(series.version, '6.12.40');
  const other = (await ctl('kernel', 'download', '--arch', 'aarch64', '--provider', 'anvil')).trim();
  const image = await json('kernel', 'inspect', other);
  assert.deepEqual([image.version, image.arch], ['6.18.10', 'aarch64']);
  assert.match(image.source, /Image-6\.18\.10-aarch64\.xz$/);
  assert.match(await fails(2, 'kernel', 'download', '6.18.9', '--insecure'), /unknown option '--insecure'/);
  assert.match(
    await fails(4, 'kernel', 'download', '6.18.3'),
    /Cannot find kernel '6\.18\.3' for x86_64 at provider 'anvil'/,
  );
  assert.match(await fails(4, 'kernel', 'download', '5.4'), /Cannot find '5\.4' at provider 'anvil'/);
  await rejects(w.client.kernel.set_default({ kernel: other }), 'unsupported', /it is for aarch64/);
  await ctl('kernel', 'remove', '--yes', other);
  await ctl('kernel', 'remove', '--yes', '6.12.40');
  assert.deepEqual((await readdir(join(w.data_dir, 'kernels'))).length, 1);
});

test('rootfs download alpine 3.21: the newest 3.21.x, unpacked to a tar, verified', async () => {
  const id = (await ctl('rootfs', 'download', 'alpine', '3.21')).trim();
  const rootfs = await json('rootfs', 'inspect', 'alpine', '3.21');
  assert.deepEqual([rootfs.id, rootfs.distro, rootfs.version], [id, 'alpine', '3.21.3']);
  assert.deepEqual([rootfs.provider, rootfs.proofs], ['alpine', ['sha256']]);
  assert.deepEqual((await json('rootfs', 'inspect', 'alpine:3.21.3')).id, id);
  assert.deepEqual((await json('rootfs', 'inspect', 'alpine')).id, id);
  const path = join(w.data_dir, 'rootfs', id, 'rootfs.tar');
  assert.match((await run(['tar', '-xOf', path, './etc/alpine-release'])).stdout, /^3\.21\.3\n/);
  await ctl('rootfs', 'verify', 'alpine', '3.21');
  await withFlippedBit(path, async () => {
    assert.match(await fails(12, 'rootfs', 'verify', 'alpine', '3.21.3'), /rootfs\.tar/);
  });
  assert.equal(
    (
      await json(
        'rootfs',
        'inspect',
        (await ctl('rootfs', 'download', 'alpine', '--provider', 'alpine', '--arch', 'x86_64')).trim(),
      )
    ).version,
    '3.22.0',
  );
  assert.deepEqual(
    (await json('rootfs', 'list', '--available', 'alpine')).map((r: { version: string; on_disk: boolean }) => [
      r.version,
      r.on_disk,
    ]),
    [
      ['3.22.0', true],
      ['3.21.3', true],
      ['3.20.6', false],
    ],
  );
  assert.deepEqual(
    (await w.client.rootfs.available({ distro: 'debian' })).map(one => one.version),
    ['13', '12', '11'],
  );
  assert.equal((await json('rootfs', 'list', 'alpine')).length, 2);
  assert.match(await fails(4, 'rootfs', 'download', 'gentoo'), /no provider of a rootfs 'gentoo'/);
  assert.match(await fails(4, 'rootfs', 'download', 'alpine', '3.99'), /Cannot find '3\.99'/);
  const list = '/alpine/v3.19/releases/x86_64/latest-releases.yaml';
  for (const version of ['3.21.3', '../../x', '3.19.1/../../3.21.3']) {
    const item = `- flavor: alpine-minirootfs\n  arch: x86_64\n  version: '${version}'\n`;
    sources.mirror.put(list, item);
    assert.match(await fails(12, 'rootfs', 'download', 'alpine', '3.19'), /which it names, is no version of 3\.19/);
  }
  sources.mirror.misbehave(list, { status: 404 });
  await ctl('rootfs', 'set-default', 'alpine', '3.21');
  assert.equal((await json('rootfs', 'inspect', 'alpine', '3.21')).is_default, true);
  assert.match(await fails(5, 'rootfs', 'remove', '--yes', 'alpine', '3.21'), /it is the default/);
  await w.client.rootfs.set_default({ rootfs: 'alpine:3.21', off: true });
  await ctl('rootfs', 'remove', '--yes', 'alpine', '3.21');
  await ctl('rootfs', 'remove', '--yes', 'alpine:3.22.0');
});

test('firecracker download 1.12.0 and v1.12.0: exactly the program and its jailer, run for their version', async () => {
  const id = (await ctl('firecracker', 'download', '1.12.0')).trim();
  assert.equal((await ctl('firecracker', 'download', 'v1.12.0')).trim(), id);
  const found = await json('firecracker', 'inspect', 'v1.12.0');
  assert.deepEqual([found.id, found.version, found.proofs], [id, '1.12.0', ['sha256']]);
  const dir = join(w.data_dir, 'firecrackers', id);
  assert.deepEqual((await readdir(dir)).sort(), ['firecracker', 'jailer']);
  assert.match((await run([join(dir, 'firecracker'), '--version'])).stdout, /^Firecracker v1\.12\.0\n/);
  assert.match((await run([join(dir, 'jailer')])).stdout, /^Jailer v1\.12\.0\n/);
  await ctl('firecracker', 'verify', '1.12.0');
  for (const name of ['firecracker', 'jailer'])
    await withFlippedBit(join(dir, name), async () => {
      assert.match(await fails(12, 'firecracker', 'verify', 'v1.12.0'), new RegExp(`Cannot verify ${name}: `));
    });
  const own = ['--provider', 'firecracker', '--arch', 'x86_64'];
  const newest = (await ctl('firecracker', 'download', ...own)).trim();
  assert.match(
    await ctl('firecracker', 'list', '--available', ...own),
    /^VERSION .*\n1\.13\.0 +x86_64 +firecracker +yes\n1\.12\.0 /,
  );
  assert.deepEqual(
    (await w.client.firecracker.available({})).map(one => [one.version, one.on_disk]),
    [
      ['1.13.0', true],
      ['1.12.0', true],
    ],
  );
  assert.equal((await w.client.firecracker.inspect({ firecracker: '1.13' })).id, newest);
  await w.client.firecracker.set_default({ firecracker: '1.12.0' });
  assert.match(await ctl('firecracker', 'list'), /1\.12\.0 .*yes/);
  assert.match(await fails(5, 'firecracker', 'remove', '--yes', '1.12.0'), /it is the default/);
  await ctl('firecracker', 'set-default', '--off', '1.12.0');
  for (const version of ['1.12.0', '1.13.0']) await ctl('firecracker', 'remove', '--yes', version);
  assert.deepEqual(await readdir(join(w.data_dir, 'firecrackers')), []);
  const { id: job } = await w.client.firecracker.download({ version: '1.12.0' });
  const done = await w.client.job.wait({ job, timeout_ms: 30_000 });
  assert.equal((await w.client.firecracker.verify({ firecracker: done.result_id ?? '' })).version, '1.12.0');
  await w.client.firecracker.remove({ firecracker: '1.12.0' });
});

test('--detach says the ID of the job, which goes on', async () => {
  const job = (await ctl('kernel', 'download', '6.18.2', '--detach')).trim();
  assert.match(job, /^job_\w+$/);
  const done = await json('job', 'wait', job);
  assert.deepEqual([done.state, done.kind, done.subject], ['succeeded', 'kernel.download', 'anvil:6.18.2']);
  await ctl('kernel', 'remove', '--yes', '6.18.2');
});

/** nexusctl on a terminal so many columns wide: its exit code, and all that it wrote there. */
const onTerminal = (columns: number, ...args: string[]) => {
  const argv = [process.execPath, join(REPO, 'src/main.ts'), 'nexusctl', '--socket', w.socket, ...args];
  const quoted = argv.map(arg => `'${arg.replaceAll("'", "'\\''")}'`).join(' ');
  return runAny(['script', '-qec', `stty cols ${columns}; ${quoted}`, '/dev/null'], { timeout_ms: 60_000 });
};

/** Every state of the live line, and what stood on the screen at last. */
const pictures = (written: string): { live: string[]; last: string } => {
  const live = written.split(/\r\u001b\[K|\r?\n/).filter(line => /^(find|checksums|download)/.test(line));
  return { live, last: written.replaceAll(/[^\n]*\r\u001b\[K/g, '').replaceAll('\r', '') };
};

const AMOUNT = String.raw`(\d[\d.]*) (B|KiB) of \d[\d.]* (?:B|KiB)`;
const RATE = String.raw`( {2}\d[\d.]* (?:B|KiB)/s)?`;
const LIVE = new RegExp(String.raw`^download {2}\[#*-*\] +(\d+)% {2}${AMOUNT}${RATE}$`);
const NARROW = new RegExp(`^download {2}${AMOUNT}${RATE}$`);

test('a download on a terminal: one live line with stage, bytes and rate, then the ID; elsewhere plain lines', async () => {
  const hub = (repo: string, file: string) => `/${repo}/releases/download/${file}`;
  const slow: [string, number][] = [
    [hub('Work-Fort/Anvil', 'v6.12.40/vmlinux-6.12.40-x86_64.xz'), 1000], // of 60 KB: the plain lines come every 5 s
    ['/alpine/v3.20/releases/x86_64/alpine-minirootfs-3.20.6-x86_64.tar.gz', 1200],
    [hub('firecracker-microvm/firecracker', 'v1.13.0/firecracker-v1.13.0-x86_64.tgz'), 20],
  ];
  for (const [path, bytes] of slow) sources.mirror.misbehave(path, { trickle: 100, bytes });
  const kernel = ['kernel', 'download', '6.12.40'];
  const [plain, narrow, ...wide] = await Promise.all([
    w.ctl(...kernel),
    onTerminal(50, ...kernel),
    onTerminal(0, ...kernel),
    onTerminal(100, 'rootfs', 'download', 'alpine', '3.20'),
    onTerminal(100, 'firecracker', 'download', '1.13.0'),
  ]);
  for (const [path] of slow) sources.mirror.misbehave(path, undefined);
  for (const { code, stdout } of [narrow, ...wide]) {
    assert.equal(code, 0, stdout);
    const { live, last } = pictures(stdout);
    assert.match(last, /^Done in [\d.]+ m?s\.\n(krn|rfs|fcr)_\w+\n$/);
    const form = stdout === narrow.stdout ? NARROW : LIVE;
    const frames = live.filter(line => line.startsWith('download'));
    for (const line of frames) assert.match(line, form);
    const amounts = frames.map(line => parseBytes(/([\d.]+ \w+) of/.exec(line)?.[1] ?? '') ?? Number.NaN);
    assert.ok(new Set(amounts).size > 5, 'it lives');
    assert.deepEqual(
      amounts,
      amounts.toSorted((a, b) => a - b),
    );
    assert.ok(frames.filter(line => line.endsWith('/s')).length > 5, 'it says how fast');
  }
  assert.deepEqual([plain.code, plain.stderr.includes('\u001b')], [0, false]);
  assert.match(
    plain.stderr,
    /^(find the version\n)?(checksums\n)?download\n(download: [\d.]+ KiB of 59.\d KiB {2}[\d.]+ KiB\/s\n)+Done in /,
  );
  await ctl('kernel', 'remove', '--yes', plain.stdout.trim());
  await ctl('rootfs', 'remove', '--yes', 'alpine:3.20');
  await ctl('firecracker', 'remove', '--yes', '1.13.0');
});

test('providers: shown, made, changed, made the default, removed; what proves nothing or cannot work is refused', async () => {
  assert.match(await ctl('provider', 'list'), /^NAME +KIND +TYPE/);
  const anvil = await json('provider', 'inspect', 'anvil');
  assert.deepEqual([anvil.kind, anvil.is_default, anvil.shipped], ['kernel', true, false]);
  assert.equal(anvil.keys[0].fingerprint, sources.signer.fingerprint);
  assert.match(
    await ctl('provider', 'inspect', 'anvil'),
    /\n {2}stage=xz\n[\s\S]*\nkeys:\n {2}fingerprint=[0-9A-F]+ armored=\S.*… allow_expired=no\n/,
  );
  assert.equal((await json('provider', 'inspect', 'debian')).shipped, true);
  const url = `${sources.mirror.put('/own/vmlinux-1.2.3', 'no kernel')}`;
  const pipeline = JSON.stringify([{ stage: 'http', url }]);
  const create = ['provider', 'create', 'own', '--kind', 'kernel', '--pipeline', pipeline];
  assert.match(await fails(2, ...create), /no stage of its pipeline proves anything/);
  assert.match(await fails(2, ...create.with(-1, '[{"stage":"gunzip"}]')), /pipeline/);
  const hash = { stage: 'sha256', expect: { hash: '0'.repeat(64) } };
  const idle = [{ stage: 'http', url }, { stage: 'pgp', document: 'https://example.org/sums' }, hash];
  const keyed = [...create.with(-1, JSON.stringify(idle)), '--keys', JSON.stringify([sources.signer.pinned])];
  assert.match(await fails(2, ...keyed), /no sha256 stage .* takes its hash from .*example\.org\/sums/);
  assert.match(
    await fails(
      2,
      ...create.with(-1, '[{"stage":"http","url":"http://x/"},{"stage":"pgp","signature":"https://x/a"}]'),
    ),
    /keys/,
  );
  const made = await json(...create, '--unverified', '--config', 'a=1');
  assert.deepEqual([made.name, made.type, made.unverified, made.is_default], ['own', 'url', true, false]);
  assert.match(await fails(5, ...create, '--unverified'), /exists/);
  assert.match(await fails(6, 'kernel', 'download', '1.2.3', '--provider', 'own'), /not an ELF/);
  assert.match(await fails(6, 'kernel', 'list', '--available', '--provider', 'own'), /a URL alone/);
  assert.deepEqual((await json('provider', 'update', 'own', '--config', 'b=2', '--config', 'a=')).config, { b: '2' });
  assert.match(await fails(2, 'provider', 'update', 'own'), /no change was given/);
  const { client } = w;
  await rejects(client.provider.update({ provider: 'own', unverified: false }), 'invalid', /proves anything/);
  await ctl('provider', 'set-default', 'own');
  assert.deepEqual(
    (await client.provider.list({ kind: 'kernel' })).map(p => [p.name, p.is_default]),
    [
      ['own', true],
      ['anvil', false],
      ['debian', false],
    ],
  );
  await rejects(client.provider.remove({ provider: 'own' }), 'in_use', /it is the default of its kind/);
  await client.provider.set_default({ provider: anvil.id });
  await ctl('provider', 'remove', '--yes', 'own');
  await rejects(client.provider.inspect({ provider: 'own' }), 'not_found', /no provider 'own'/);
  await client.provider.create({
    name: 'vague',
    kind: 'kernel',
    pipeline: [{ stage: 'http', url: 'https://{nobody}/x' }],
    unverified: true,
  });
  const { id } = await w.client.kernel.download({ version: '1', provider: 'vague' });
  assert.deepEqual((await w.client.job.wait({ job: id })).error?.code, 'invalid');
  await client.provider.remove({ provider: 'vague' });
});
