/** A real root file system from the real package archive. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFile, chown, copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Fault } from '../src/api/fault.ts';
import { openApt } from '../src/assets/apt.ts';
import { downloadDebianRootfs, sourcesFor, verifyRootfs } from '../src/assets/debian-rootfs.ts';
import { makeScratch, sweepScratch } from '../src/assets/scratch.ts';
import { poll } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { procsWithEnv } from '../src/lib/marked.ts';
import { runAny } from '../src/lib/proc.ts';
import { testRootfs } from './kit/assets.ts';

let dir = '';
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-rootfs-'));
});
after(() => rm(dir, { recursive: true, force: true }));

const fresh = (): Promise<string> => mkdtemp(join(dir, 'r-'));
const quiet = {
  packages: [],
  owner: '/nobody',
  signal: new AbortController().signal,
  onProgress: () => {},
  onLog: () => {},
};

/** Command lines of processes that name this path. */
const users = async (path: string): Promise<string[]> => {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name));
  const lines = await Promise.all(pids.map(pid => readFile(join('/proc', pid, 'cmdline'), 'utf8').catch(() => '')));
  return lines.filter(line => line.includes(path));
};

test('the archive is a minimal Debian: owners, set-uid bits, signed sources, no identity, no left-overs', async () => {
  const rootfs = await testRootfs();
  assert.equal(rootfs.distro, 'debian');
  assert.equal(rootfs.version, '12');
  assert.ok(rootfs.size_bytes < 250_000_000, `${rootfs.size_bytes} bytes`);
  const lines = execFileSync('tar', ['--numeric-owner', '-tvf', rootfs.tar], { maxBuffer: 1 << 26 })
    .toString()
    .split('\n');
  const line = (path: string) => lines.find(l => l.endsWith(` ./${path}`)) ?? assert.fail(`no ${path}`);
  assert.match(line('usr/bin/passwd'), /^-rwsr-xr-x 0\/0 /);
  assert.match(line('etc/shadow'), /^-rw-r----- 0\/42 /);
  assert.match(line('dev/null'), /^crw-rw-rw- 0\/0 +1,3 /);
  assert.match(line('etc/machine-id'), /^-rw-r--r-- 0\/0 +0 /);
  for (const name of ['curl', 'ps']) line(`usr/bin/${name}`);
  for (const name of ['etc/hostname', 'etc/resolv.conf', 'etc/apt/apt.conf.d/99mmdebstrap'])
    assert.ok(!lines.some(l => l.endsWith(` ./${name}`)), name);
  // If the cleaning missed the new system, it was the host's lists and caches that were cleaned.
  assert.ok(!lines.some(l => /\.\/var\/(cache\/apt\/.*\.deb|lib\/apt\/lists\/.*_)/.test(l)));
  const sources = execFileSync('tar', ['-xOf', rootfs.tar, './etc/apt/sources.list.d/0000main.sources']).toString();
  assert.match(sources, /^Suites: bookworm$/m);
  assert.ok(!/trusted|allow-insecure/i.test(sources));
  for (const stanza of sources.trim().split('\n\n')) assert.match(stanza, /^Signed-By: .*debian-archive-keyring/m);
});

test('verify names the archive that was changed', async () => {
  const rootfs = await testRootfs();
  await verifyRootfs(rootfs.dir, { sha256: rootfs.sha256, size_bytes: rootfs.size_bytes }).catch(() => assert.fail());
  const target = await fresh();
  await copyFile(rootfs.tar, join(target, 'rootfs.tar'));
  await appendFile(join(target, 'rootfs.tar'), 'x');
  await assert.rejects(
    verifyRootfs(target, rootfs),
    (error: Fault) => error.code === 'unverified' && error.message.includes('rootfs.tar'),
  );
});

test('an unknown release is not found, and the fault names the known ones', async () => {
  const target = await fresh();
  for (const version of ['99', 'jammy', '1'])
    await assert.rejects(
      downloadDebianRootfs({ ...quiet, version, dir: target }),
      (error: Fault) => error.code === 'not_found' && error.message.includes('12 (bookworm)'),
      version,
    );
  assert.deepEqual(await readdir(target), []);
});

test('a package that is none is refused, by its name', async () => {
  const target = await fresh();
  await assert.rejects(
    downloadDebianRootfs({ ...quiet, version: '12', packages: ['--hook'], dir: target }),
    (error: Fault) => error.code === 'invalid' && error.message.includes('--hook'),
  );
  await assert.rejects(
    downloadDebianRootfs({ ...quiet, version: '12', packages: ['nexus-has-no-such-package'], dir: target }),
    (error: Fault) => error.code === 'not_found' && error.message.includes('nexus-has-no-such-package'),
  );
  assert.deepEqual(await readdir(target), []);
});

/** A source line for a package repository on disk that says it is of that origin and code name. */
const repository = async (at: string, origin: string, codename: string): Promise<string> => {
  const suite = join(at, origin, 'dists', codename);
  await mkdir(join(suite, 'main/binary-amd64'), { recursive: true });
  const index = Buffer.from('Package: x\nVersion: 1\nArchitecture: amd64\nFilename: x\nSize: 1\nDescription: x\n\n');
  await writeFile(join(suite, 'main/binary-amd64/Packages'), index);
  const hash = createHash('sha256').update(index).digest('hex');
  const hashes = `SHA256:\n ${hash} ${index.length} main/binary-amd64/Packages\n`;
  const head = `Origin: ${origin}\nSuite: ${codename}\nCodename: ${codename}\nArchitectures: amd64\nComponents: main\n`;
  await writeFile(join(suite, 'Release'), `${head}Date: Thu, 01 Jan 2026 00:00:00 UTC\n${hashes}`);
  return `deb [trusted=yes arch=amd64] file:${at}/${origin} ${codename} main\n`;
};

test("the sources are the machine's own of Debian and no others, for another release too", async () => {
  const at = await fresh();
  for (const folder of ['parts', 'lists', 'lists/partial']) await mkdir(join(at, folder));
  const conf = ['Etc::SourceList "sources.list"', 'Etc::SourceParts "parts/"', 'State::Lists "lists/"'];
  await writeFile(join(at, 'apt.conf.test'), conf.map(c => `Dir::${c.replace(' "', ` "${at}/`)};\n`).join(''));
  const debian = await repository(at, 'Debian', 'bookworm');
  const security = await repository(at, 'Debian', 'bookworm-security');
  const other = await repository(at, 'Other', 'bookworm');
  process.env.APT_CONFIG = join(at, 'apt.conf.test');
  try {
    const sources = async (list: string): Promise<string> => {
      await writeFile(join(at, 'sources.list'), list);
      const dir = await fresh();
      return await sourcesFor(await openApt(dir, quiet.signal, () => {}), 'trixie');
    };
    const text = await sources(debian + other + security);
    assert.deepEqual(
      [...text.matchAll(/^URIs: (\S+)\nSuites: (\S+)$/gm)].map(m => m.slice(1)),
      [
        [`file:${at}/Debian/`, 'trixie'],
        [`file:${at}/Debian/`, 'trixie-security'],
      ],
    );
    assert.equal(text.match(/^Signed-By: .*debian-archive-keyring/gm)?.length, 2);
    await assert.rejects(sources(other), (error: Fault) => error.code === 'host');
  } finally {
    delete process.env.APT_CONFIG;
  }
});

test('without mmdebstrap on the host the fault says what to install', async () => {
  const at = await fresh();
  const path = process.env.PATH;
  await mkdir(join(at, 'bin'));
  for (const name of ['apt-get', 'apt-config', 'unshare', 'fakechroot', 'fakeroot', 'true'])
    await runAny(['/bin/sh', '-c', 'ln -s "$(command -v "$1")" "$2/$1"', 'x', name, join(at, 'bin')]);
  process.env.PATH = join(at, 'bin');
  try {
    await mkdir(join(at, 'out'));
    await assert.rejects(
      downloadDebianRootfs({ ...quiet, version: '12', dir: join(at, 'out') }),
      (error: Fault) => error.code === 'host' && /apt-get install/.test(error.hint ?? ''),
    );
  } finally {
    process.env.PATH = path;
  }
});

/** A program that makes a root file system and is canceled in the given stage; run as whoever is asked. */
const SCRIPT = `
import { readdirSync } from 'node:fs';
const { downloadDebianRootfs } = await import(process.argv[1]);
const [, , dir, stage] = process.argv;
const abort = new AbortController();
const reason = new Error('stop');
try {
  await downloadDebianRootfs({ version: '12', packages: [], dir, owner: dir, signal: abort.signal, onLog: line => console.log(line),
    onProgress: p => p.stage === stage && abort.abort(reason) });
} catch (error) {
  console.log(error === reason ? 'CANCELED' : error);
}
console.log('LEFT', JSON.stringify(readdirSync(dir)));
`;

const cancelAs = async (prefix: readonly string[], stage: string, target: string): Promise<string> => {
  const module = join(import.meta.dirname, '../src/assets/debian-rootfs.ts');
  const argv = [...prefix, process.execPath, '--input-type=module', '-e', SCRIPT, module, target, stage];
  const { stdout, stderr } = await runAny(argv, { timeout_ms: 180_000, env: { ...process.env, HOME: target } });
  return stdout + stderr;
};

const root = process.getuid?.() === 0;
const mine = root ? 'root' : 'the caller';
for (const [who, prefix, stage] of [
  [mine, [], 'unpack packages'],
  ['nobody', ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'], 'install essential packages'],
] as const)
  test(`canceled as ${who} in '${stage}': no process, no mount, no file stays`, async t => {
    if (prefix.length > 0 && !root) return t.skip('needs root to become another user');
    const target = await fresh();
    if (prefix.length > 0) {
      execFileSync('chmod', ['711', dir]);
      await chown(target, 65534, 65534);
      const can = await runAny([...prefix, 'test', '-r', join(import.meta.dirname, 'assets-rootfs.test.ts')]);
      const node = await runAny([...prefix, process.execPath, '-e', '0']).catch(() => ({ code: 1 }));
      if (can.code !== 0 || node.code !== 0) return t.skip('another user cannot read this folder or run this Node');
    }
    const said = await cancelAs(prefix, stage, target);
    assert.match(said, /^CANCELED$/m);
    assert.match(said, /^LEFT \[\]$/m);
    if (prefix.length > 0) assert.match(said, /mode (fakechroot|unshare)/);
    await poll('the end of all processes', 5000, async () => ((await users(target)).length === 0 ? true : undefined));
    const marked = () => procsWithEnv('NEXUS_ROOTFS_WORK', join(target, '.work'));
    await poll("the end of fakeroot's daemon", 5000, async () => ((await marked()).length === 0 ? true : undefined));
    assert.ok(!(await readFile('/proc/self/mountinfo', 'utf8')).includes(target));
    assert.ok(await exists(target));
    assert.deepEqual(await sweepScratch(target), [], 'nothing was left for the next daemon to remove');
  });

test('what a killed download left in the temporary folder is found by its owner, and by nobody else', async () => {
  const owner = await fresh();
  const left = await makeScratch(owner);
  await mkdir(join(left, 'mmdebstrap.x/etc'), { recursive: true });
  await writeFile(join(left, 'mmdebstrap.x/etc/passwd'), 'x');
  assert.deepEqual(await sweepScratch(`${owner}/other`), []);
  assert.deepEqual(await sweepScratch(owner), [left]);
  assert.equal(await exists(left), false);
});
