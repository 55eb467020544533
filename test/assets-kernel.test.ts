/** Real kernels from the real package archive, through the machine's apt. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFile, mkdir, mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { elfProblem, hasPvh } from '../src/assets/elf.ts';
import { verifyFile } from '../src/assets/verify.ts';
import { run } from '../src/lib/proc.ts';
import { fetchKernel, type KernelFiles, testKernel } from './kit/assets.ts';

let dir = '';
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-kernel-'));
});
after(() => rm(dir, { recursive: true, force: true }));

const fresh = (): Promise<string> => mkdtemp(join(dir, 'k-'));
/** Hashes the files of a kernel again. */
const verifyKernel = async (at: string, kernel: KernelFiles): Promise<void> => {
  await verifyFile(join(at, 'vmlinux'), kernel);
  const { modules_sha256: sha256, modules_size_bytes: size_bytes } = kernel;
  await verifyFile(join(at, 'modules.cpio'), { sha256, size_bytes });
};
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

for (const series of ['6.12', '6.1'] as const) {
  test(`kernel ${series}: an ELF with a PVH entry, and the record is true`, async () => {
    const kernel = await testKernel(series);
    assert.match(kernel.version, new RegExp(`^${RegExp.escape(series)}[.+].*-cloud-amd64$`));
    assert.match(kernel.source, /^linux-image-\S+-cloud-amd64 \S+$/);
    const elf = await readFile(kernel.vmlinux);
    assert.equal(elfProblem(elf, 'x86_64'), undefined);
    assert.ok(hasPvh(elf));
    assert.ok(elf.includes(`Linux version ${kernel.version} `));
    assert.equal(sha256(elf), kernel.sha256);
    await verifyKernel(kernel.dir, kernel);
  });

  test(`kernel ${series}: the modules load in order, with all they need, and modprobe finds them`, async t => {
    const kernel = await testKernel(series);
    const root = await fresh();
    const lib = join(root, 'lib/modules', kernel.version);
    execFileSync('cpio', ['-id', '--quiet'], { cwd: root, input: await readFile(kernel.modules) });
    const load = (await readFile(join(root, 'lib/modules/nexus.load'), 'utf8')).trim().split('\n');
    const builtin = await readFile(join(lib, 'modules.builtin'), 'utf8');
    for (const name of ['virtio_mmio', 'virtio_blk', 'virtio_console', 'virtio-rng', 'ext4', 'vsock', 'virtio_net'])
      assert.ok(load.some(l => l.endsWith(`/${name}.ko`)) !== builtin.includes(`/${name}.ko`), `${name} once`);
    const deps = new Map(
      (await readFile(join(lib, 'modules.dep'), 'utf8'))
        .trim()
        .split('\n')
        .map(l => {
          const [path = '', rest = ''] = l.split(':');
          return [join('/lib/modules', kernel.version, path), rest.split(' ').filter(d => d !== '')];
        }),
    );
    for (const [i, path] of load.entries()) {
      assert.equal((await readFile(join(root, path))).readUInt32BE(0), 0x7f454c46, path);
      for (const dep of deps.get(path) ?? assert.fail(path))
        assert.ok(
          load.slice(0, i).some(l => l.endsWith(dep)),
          `${dep} before ${path}`,
        );
    }
    const modprobe = ['/usr/sbin/modprobe', '/sbin/modprobe'];
    const found = await Promise.all(
      modprobe.map(p =>
        run([p, '--version']).then(
          () => p,
          () => undefined,
        ),
      ),
    );
    const program = found.find(p => p !== undefined);
    if (program === undefined) return t.diagnostic('modprobe is not installed: its indexes are not tried');
    for (const name of ['overlay', 'nft_masq', 'nfnetlink-subsys-10', 'devname:net/tun', 'br_netfilter']) {
      const { stdout } = await run([program, '-d', root, '-S', kernel.version, '-D', name]);
      const files = [...stdout.matchAll(/^insmod (\S+)/gm)].map(m => m[1] ?? '');
      assert.ok(files.length > 0, name);
      const asked = deps.get(files.at(-1)?.slice(root.length) ?? '') ?? assert.fail(name);
      assert.deepEqual(
        files
          .slice(0, -1)
          .map(f => f.slice(lib.length + 1))
          .sort(),
        [...asked].sort(),
        name,
      );
    }
    await run([program, '-d', root, '-S', kernel.version, '-D', 'ext4']);
  });
}

test('a download gives the same bytes again, tells its progress and leaves nothing else', async () => {
  const kernel = await testKernel('6.1');
  const target = await fresh();
  const stages = new Set<string>();
  const made = await fetchKernel({
    version: kernel.version,
    dir: target,
    onProgress: p => {
      assert.ok(p.total === null || p.done <= p.total);
      stages.add(p.stage);
    },
  });
  assert.equal(made.sha256, kernel.sha256);
  assert.equal(made.modules_sha256, kernel.modules_sha256);
  assert.deepEqual((await readdir(target)).sort(), ['modules.cpio', 'vmlinux']);
  for (const stage of ['unpack', 'modules']) assert.ok(stages.has(stage), stage);
});

test('a version that the archive does not have is not found, and the fault names some that it has', async () => {
  const target = await fresh();
  await assert.rejects(fetchKernel({ version: '6.12.99999', dir: target }), (error: Fault) => {
    assert.equal(error.code, 'not_found');
    assert.match(error.hint ?? '', /-cloud-amd64/);
    return true;
  });
  assert.deepEqual(await readdir(target), []);
});

for (const stage of ['download', 'unpack', 'modules'])
  test(`canceled in the stage '${stage}': the reason comes back, nothing stays`, async () => {
    const target = await fresh();
    const abort = new AbortController();
    const reason = new Fault('canceled', 'stop');
    const going = fetchKernel({
      version: '6.1',
      dir: target,
      signal: abort.signal,
      onLog: line => stage === 'download' && /^Get:/.test(line) && abort.abort(reason),
      onProgress: p => p.stage === stage && abort.abort(reason),
    });
    await assert.rejects(going, error => error === reason);
    const left = await readdir(target);
    assert.ok(stage === 'modules' || left.length === 0, left.join());
    assert.ok(!left.includes('modules.cpio'), left.join());
    const cwds = (await readdir('/proc')).filter(p => /^\d+$/.test(p)).map(p => join('/proc', p, 'cmdline'));
    const lines = await Promise.all(cwds.map(p => readFile(p, 'utf8').catch(() => '')));
    assert.ok(!lines.some(l => l.includes(target)));
  });

test('verify names the file that was changed or is gone', async () => {
  const kernel = await testKernel('6.1');
  const target = await fresh();
  for (const name of ['vmlinux', 'modules.cpio']) await copyFile(join(kernel.dir, name), join(target, name));
  await verifyKernel(target, kernel);
  const unverified = (name: string) => (error: Fault) => error.code === 'unverified' && error.message.includes(name);
  const file = await open(join(target, 'modules.cpio'), 'r+');
  await file.write(Buffer.from('X'), 0, 1, 5000);
  await file.close();
  await assert.rejects(verifyKernel(target, kernel), unverified('modules.cpio'));
  await rm(join(target, 'vmlinux'));
  await assert.rejects(verifyKernel(target, kernel), unverified('vmlinux'));
});

/** Runs `task` with apt configured so for this process, as APT_CONFIG does it for every apt. */
const withApt = async <T>(conf: string, task: () => Promise<T>): Promise<T> => {
  const path = join(await fresh(), 'apt.conf');
  await writeFile(path, conf);
  process.env.APT_CONFIG = path;
  try {
    return await task();
  } finally {
    delete process.env.APT_CONFIG;
  }
};

/** A repository on disk with one kernel package whose index has the given hash; its lists are not the system's. */
const repository = async (options: { trusted: boolean; sha256?: string }): Promise<string> => {
  const at = await fresh();
  const name = 'linux-image-9.9.9-cloud-amd64';
  const deb = Buffer.from('!<arch>\nnot a package, but no one reads it');
  await mkdir(join(at, 'lists/partial'), { recursive: true });
  await mkdir(join(at, 'parts'));
  await mkdir(join(at, 'repo'));
  await writeFile(join(at, 'repo', `${name}.deb`), deb);
  const index = Buffer.from(
    `Package: ${name}\nVersion: 9.9.9-1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n` +
      `Filename: ./${name}.deb\nSize: ${deb.length}\nSHA256: ${options.sha256 ?? sha256(deb)}\n\n`,
  );
  await writeFile(join(at, 'repo/Packages'), index);
  await writeFile(
    join(at, 'repo/Release'),
    `Suite: x\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n ${sha256(index)} ${index.length} Packages\n`,
  );
  await writeFile(join(at, 'sources.list'), `deb [trusted=${options.trusted ? 'yes' : 'no'}] file:${at}/repo ./\n`);
  return (
    `Dir::Etc::SourceList "${at}/sources.list";\nDir::Etc::SourceParts "${at}/parts";\n` +
    `Dir::State::Lists "${at}/lists";\nAPT::Architecture "amd64";\n`
  );
};

test('empty lists of the system: lists of our own are fetched, the others stay as they are', async () => {
  const lists = await fresh();
  await mkdir(join(lists, 'partial'));
  const target = await fresh();
  const log: string[] = [];
  const kernel = await testKernel('6.1');
  const made = await withApt(`Dir::State::Lists "${lists}";\n`, () =>
    fetchKernel({ version: '6.1', dir: target, onLog: line => log.push(line) }),
  );
  assert.match(made.version, /^6\.1\./);
  assert.equal(made.arch, kernel.arch);
  assert.ok(log.some(line => line.includes('lists of our own')));
  assert.deepEqual(await readdir(lists), ['partial']);
});

test('a repository without a signature is not used', async () => {
  const conf = await repository({ trusted: false });
  const target = await fresh();
  await assert.rejects(
    withApt(conf, () => fetchKernel({ version: '9.9.9', dir: target })),
    (error: Fault) => error.code === 'unverified' && error.message.includes('apt says'),
  );
  assert.deepEqual(await readdir(target), []);
});

test('a package that is not the one in the index is not used', async () => {
  const conf = await repository({ trusted: true, sha256: '0'.repeat(64) });
  const target = await fresh();
  await assert.rejects(
    withApt(conf, () => fetchKernel({ version: '9.9.9', dir: target })),
    (error: Fault) => error.code === 'unverified',
  );
  assert.deepEqual(await readdir(target), []);
});

test('a package that is signed but no package is refused without a trace', async () => {
  const conf = await repository({ trusted: true });
  const target = await fresh();
  await assert.rejects(
    withApt(conf, () => fetchKernel({ version: '9.9.9', dir: target })),
    (error: Fault) => error.code === 'unsupported',
  );
  assert.deepEqual(await readdir(target), []);
});

test('without apt on the host the fault says what to do', async () => {
  const target = await fresh();
  const before = process.env.PATH;
  process.env.PATH = '/nonexistent';
  try {
    await assert.rejects(
      fetchKernel({ dir: target }),
      (error: Fault) => error.code === 'host' && /apt/.test(error.hint ?? ''),
    );
  } finally {
    process.env.PATH = before;
  }
});
