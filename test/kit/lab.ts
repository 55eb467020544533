/**
 * The lab: a machine in which KVM runs guests, so that Firecracker can be driven for real on any host. Where this host's own KVM
 * does, it is this host. Else it is a VM under QEMU, whose emulated processor has AMD-V: an ordinary Nexus machine with a Debian
 * as its root, and Node, the project and what its tests use on a second disk, which is made anew each time.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, open, readdir, readFile, rm, stat, truncate } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { z } from 'zod';
import { buildExt4 } from '../../src/images/build.ts';
import { guestOverlays } from '../../src/images/overlays.ts';
import { ensureDir } from '../../src/lib/files.ts';
import { run, runAny } from '../../src/lib/proc.ts';
import { agentBinaries } from './agent.ts';
import { testKernel, testRootfs } from './assets.ts';
import { bundleTests } from './bundle.ts';
import { cached } from './cache.ts';
import { firecrackerProgram } from './firecracker.ts';
import { type BareMachine, bareMachine } from './machine.ts';
import { start } from './stress.ts';
import { REPO, seed } from './world.ts';

const SHELF = join(REPO, '.cache/lab');
/** What Node, the daemon and the tests need of a Debian. Not the btrfs program: the seed is of plain files, which the daemon then clones. */
const PACKAGES = ['e2fsprogs', 'libatomic1', 'libstdc++6', 'xz-utils'];
const MODULES = ['kvm_amd', 'btrfs'];
const MEMORY_MIB = 4096;
const DISK_BYTES = 8 * 1024 ** 3;
const REPORTER = 'test/lab/reporter.ts';
const TESTS_MS = 900_000;
const HOUR_MS = 3_600_000;

const Result = z.discriminatedUnion('type', [
  z.object({ type: z.literal('note'), text: z.string() }),
  z.object({
    type: z.literal('test'),
    name: z.string(),
    ms: z.number(),
    skip: z.string().optional(),
    error: z.string().optional(),
  }),
]);
export type LabResult = z.infer<typeof Result>;
type OnResult = (result: LabResult) => Promise<void> | void;

export interface Lab extends AsyncDisposable {
  /** One sentence for people. */
  readonly where: string;
  /** Runs the test files; gives the exit code of the runner. */
  test(onResult: OnResult): Promise<number | null>;
}

/** True where /dev/kvm of this host runs guests. */
const kvmWorks = async (): Promise<boolean> => {
  const { stdout } = await run([(await agentBinaries()).probe, 'kvm'], { timeout_ms: 20_000 });
  return z.looseObject({ usable: z.boolean() }).parse(JSON.parse(stdout)).usable;
};

/** The lab's root file system, made once for each set of packages and each agent. */
const rootDisk = async (): Promise<string> => {
  const rootfs = await testRootfs(PACKAGES);
  const agent = await readFile((await agentBinaries()).agent_x86_64);
  const hash = createHash('sha256').update(rootfs.sha256).update(agent).digest('hex').slice(0, 16);
  const label = { template: null, template_version: null, rootfs: null, rootfs_sha256: null, agent_version: '9' };
  const { dir } = await cached('lab', `root-${hash}`, async dir => {
    await buildExt4({
      archive: rootfs.tar,
      defaults: (scan, facts) => guestOverlays(scan, facts, { name: 'x', init: 'agent', agent, label }),
      out: join(dir, 'root.raw'),
      size_bytes: 1024 ** 3,
      signal: AbortSignal.timeout(600_000),
    });
    return {};
  });
  return join(dir, 'root.raw');
};

/** Puts a file or folder at `to`, by links where that can be: it is only read. */
const place = async (from: string, to: string): Promise<void> => {
  await mkdir(dirname(to), { recursive: true });
  if ((await runAny(['cp', '-alL', from, to])).code === 0) return;
  await rm(to, { recursive: true, force: true });
  await run(['cp', '-aL', '--sparse=always', from, to], { timeout_ms: 300_000 });
};

/** The second disk, made in `dir`: of btrfs, on which a disk of the daemon's is cloned in no time. */
const payloadDisk = async (dir: string, files: readonly string[]): Promise<string> => {
  const tree = join(dir, 'tree');
  const agent = await agentBinaries();
  await bundleTests([REPORTER, ...files], join(tree, 'nexus'), '/lab/nexus');
  await place(process.execPath, join(tree, 'bin/node'));
  await place(await firecrackerProgram(), join(tree, 'bin/firecracker'));
  await place(dirname(agent.probe), join(tree, 'fixtures/agent'));
  await place(await seed(), join(tree, 'fixtures/seed'));
  await mkdir(join(tree, 'tmp'));
  await chmod(join(tree, 'tmp'), 0o1777);
  const disk = join(dir, 'payload.raw');
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  await (await open(disk, 'wx')).close();
  await truncate(disk, DISK_BYTES);
  await run(['mkfs.btrfs', '-q', '-m', 'single', '--rootdir', tree, disk], { env, timeout_ms: 300_000 });
  await rm(tree, { recursive: true });
  return disk;
};

/** A folder for one run; those that killed runs left go. */
const workDir = async (): Promise<string> => {
  for (const name of await readdir(await ensureDir(SHELF))) {
    const path = join(SHELF, name);
    const info = await stat(path).catch(() => undefined);
    if (name.startsWith('run-') && info !== undefined && Date.now() - info.mtimeMs > HOUR_MS)
      await rm(path, { recursive: true, force: true });
  }
  return await mkdtemp(join(SHELF, 'run-'));
};

const PREPARE = `set -e
mkdir /lab; modprobe btrfs; mount -o nobarrier /dev/vdb /lab
modprobe kvm_amd nested=1 npt=1; modprobe tun; modprobe loop
groupadd --system kvm; chown root:kvm /dev/kvm; chmod 660 /dev/kvm`;

const INSIDE = {
  PATH: '/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  HOME: '/root',
  TMPDIR: '/lab/tmp',
  NODE_COMPILE_CACHE: '/lab/tmp/compiled',
  NEXUS_TEST_FIXTURES: '/lab/fixtures',
  NEXUS_FIRECRACKER: '/lab/bin/firecracker',
};

const testArgv = (node: string, reporter: string, files: readonly string[]): string[] => [
  ...[node, '--test', `--test-reporter=./${reporter}`, '--test-concurrency=1', '--test-isolation=none'],
  ...[`--test-timeout=${TESTS_MS}`, ...files],
];

const bundled = (file: string): string => file.replace(/\.ts$/, '.mjs');

/** Pieces of the reporter's text to results, one after the other; a line that is none is a note. */
const reader = (onResult: OnResult): ((piece: string) => Promise<void>) => {
  let rest = '';
  return async piece => {
    const lines = (rest + piece).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines.filter(text => text !== '')) {
      const found = line.startsWith('{') ? Result.safeParse(JSON.parse(line)) : undefined;
      await onResult(found?.data ?? { type: 'note', text: line });
    }
  };
};

const thisHost = async (files: readonly string[]): Promise<Lab> => {
  const env = { ...process.env, NEXUS_FIRECRACKER: await firecrackerProgram() };
  return {
    where: "on this host's KVM",
    test: async onResult => {
      const read = reader(onResult);
      let done = Promise.resolve();
      const onLine = (line: string) => {
        done = done.then(() => read(`${line}\n`));
      };
      const { code } = await runAny(testArgv(process.execPath, REPORTER, files), {
        cwd: REPO,
        env,
        timeout_ms: TESTS_MS,
        onLine,
      });
      await done;
      return code;
    },
    [Symbol.asyncDispose]: async () => {},
  };
};

interface Spec {
  cwd?: string;
  env?: Record<string, string>;
}

const command = async (machine: BareMachine, argv: string[], spec: Spec, onResult: OnResult) => {
  const stream = await start(machine.guest, argv, spec, undefined, AbortSignal.timeout(TESTS_MS));
  stream.result.catch(() => {}); // it is awaited after the output
  const read = reader(onResult);
  for await (const piece of stream) if ('data' in piece) await read(piece.data.toString());
  await read('\n');
  return (await stream.result).exit_code;
};

const machineLab = async (files: readonly string[]): Promise<Lab> => {
  await using made = new AsyncDisposableStack();
  const dir = await workDir();
  made.defer(() => rm(dir, { recursive: true, force: true }));
  const [image, kernel, disk] = [await rootDisk(), await testKernel('6.12', MODULES), await payloadDisk(dir, files)];
  const machine = made.use(
    await bareMachine({ image, kernel, init: 'agent', vcpus: 1, memory_mib: MEMORY_MIB, disks: [disk] }),
  );
  const said: string[] = [];
  const keep = (result: LabResult) => void said.push('text' in result ? result.text : '');
  if ((await command(machine, ['sh', '-c', PREPARE], {}, keep)) !== 0)
    throw new Error(`The lab cannot be prepared: ${[...said, ...(await machine.console.tail(20))].join('\n')}`);
  const owned = made.move();
  return {
    where: 'in a VM with an emulated AMD-V',
    test: onResult => {
      const argv = testArgv('node', bundled(REPORTER), files.map(bundled));
      return command(machine, argv, { cwd: '/lab/nexus', env: INSIDE }, onResult);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
};

/**
 * Ready to run these test files (paths from the project's root). Where it cannot be made because this host lacks something it is
 * a `host` fault.
 */
export const openLab = async (files: readonly string[]): Promise<Lab> =>
  (await kvmWorks()) ? thisHost(files) : machineLab(files);
