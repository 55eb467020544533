/** A whole daemon: a data directory of its own, real SQLite, a real socket, a real process. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { chmod, cp, link, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import type { VmmKind } from '../../src/api/vm.ts';
import { Nexus } from '../../src/client/nexus.ts';
import { openCgroups } from '../../src/lib/cgroup.ts';
import { poll } from '../../src/lib/deadline.ts';
import { exists } from '../../src/lib/files.ts';
import { bootId, isAlive, type ProcRef, procRef, type RunResult, runAny, signalProc } from '../../src/lib/proc.ts';
import { vmOf } from '../../src/vmm/find.ts';
import { findKeepers } from '../../src/vmm/keeper.ts';
import { QEMU_PROGRAM } from '../../src/vmm/qemu_facts.ts';
import { agentBinaries, FIXTURES } from './agent.ts';
import { type Audited, audit, countOpen, type OpenCount, remains } from './audit.ts';
import { firecrackerProgram } from './firecracker.ts';
import { agentDirWithKvm, openStandin, type Standin } from './standin.ts';

export const REPO = join(import.meta.dirname, '../..');
const MAIN = join(REPO, FIXTURES === undefined ? 'src/main.ts' : 'src/main.mjs');

export interface WorldOptions {
  /** `standin`: a program that speaks QMP and rings at once; `real`: QEMU; a path: that program. Default: the stand-in, if no Firecracker is asked for. */
  qemu?: 'standin' | 'real' | string;
  /** As `qemu`; with `standin` the probe says that KVM works. Default: none. */
  firecracker?: 'standin' | 'real' | string;
  /** `booted`: a real kernel and a real Debian image are there. Default: empty. */
  seed?: 'empty' | 'booted';
  env?: Record<string, string>;
  /** The program; default: src/main.ts. */
  main?: string;
  /** Where the data directory is made; default: the system's temporary folder. */
  parent?: string;
}

/** Its end is an audit: what it leaves behind fails the test. */
export interface World extends Audited, AsyncDisposable {
  /** nexusctl, as a process. */
  ctl(...args: string[]): Promise<RunResult>;
  /** The daemon's process. */
  daemon(): ProcRef;
  /** How the daemon of now ended; waits for it. */
  ended(): Promise<NodeJS.Signals | number>;
  /** kill -9 of the daemon. */
  kill(): Promise<void>;
  /** SIGTERM, and its end. */
  stop(): Promise<void>;
  /** A new daemon on the same directory. */
  start(env?: Record<string, string>): Promise<void>;
  /** Says how every stand-in that is started from now on behaves, or that of one VM: see the headers of test/standin/qemu.ts and firecracker.ts. */
  behave(vars?: Record<string, string | number>, vm_id?: string): Promise<void>;
  /** VMMs of this data directory. */
  vmms(): Promise<number[]>;
  log(): Promise<string>;
}

/** No program: a driver of which it is the program can start nothing. */
const NONE = '/nonexistent';

/** The VMMs as the daemon's environment names them, and the stand-in if there is one. */
const openVmm = async (
  options: WorldOptions,
): Promise<{ env: Record<string, string>; standin: Standin | undefined }> => {
  const agent = await agentBinaries();
  const { firecracker, qemu = firecracker === undefined ? 'standin' : NONE } = options;
  const kind = firecracker === 'standin' ? 'firecracker' : qemu === 'standin' ? 'qemu' : undefined;
  const standin = kind === undefined ? undefined : await openStandin(kind, { harness: agent.harness });
  const programOf = async (of: VmmKind, wish: string, real: () => Promise<string>) =>
    of === kind ? (standin?.program ?? wish) : wish === 'real' ? await real() : wish;
  const env = {
    NEXUS_AGENT_DIR: dirname(agent.probe),
    NEXUS_CHECK_OUTPUT: '1',
    NEXUS_QEMU: await programOf('qemu', qemu, async () => QEMU_PROGRAM),
    NEXUS_FIRECRACKER: await programOf('firecracker', firecracker ?? NONE, firecrackerProgram),
    ...(kind === 'firecracker' && standin && { NEXUS_AGENT_DIR: await agentDirWithKvm(standin, agent) }),
  };
  return { env, standin };
};

/**
 * A VMM's own user needs /dev/kvm, and where that is root's alone none is started. For a stand-in, which does not open it, an
 * ordinary file takes its place, for the daemon and its children alone.
 */
const openKvm = async (standin: Standin): Promise<string[]> => {
  const device = await stat('/dev/kvm').catch(() => undefined);
  if (process.getuid?.() !== 0 || device === undefined) return [];
  const { mode, gid } = device;
  if ((mode & 0o006) === 0o006 || (gid !== 0 && (mode & 0o060) === 0o060)) return [];
  const file = join(dirname(standin.program), 'kvm');
  await writeFile(file, '');
  await chmod(file, 0o666);
  const script = 'mount --bind "$0" /dev/kvm && exec "$@"';
  return ['unshare', '--mount', '--propagation', 'slave', 'sh', '-c', script, file];
};

export const world = async (options: WorldOptions = {}): Promise<World> => {
  const data_dir = await mkdtemp(join(options.parent ?? tmpdir(), 'nx-'));
  const socket = join(data_dir, 'nexusd.sock');
  const main = options.main ?? MAIN;
  const { env: vmm, standin } = await openVmm(options);
  const standin_kvm = options.firecracker === 'standin' && standin !== undefined ? await openKvm(standin) : [];
  const env = { ...process.env, ...vmm, ...options.env };
  if (options.seed === 'booted') await copySeed(await seed(), data_dir);
  let child: ChildProcess | undefined;
  let ref: ProcRef | undefined;
  let gone: Promise<NodeJS.Signals | number> = Promise.resolve(0);
  let opened: OpenCount = { pipes: 0, nameless: 0, others: 0 };
  const start = async (extra: Record<string, string> = {}): Promise<void> => {
    const log = createWriteStream(join(data_dir, 'nexusd.log'), { flags: 'a' });
    const [program = '', ...before] = [...standin_kvm, process.execPath];
    const started = spawn(program, [...before, main, 'nexusd', '--data-dir', data_dir], {
      env: { ...env, ...extra },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    log.on('error', () => {}); // a disk that a test fills
    started.stderr?.pipe(log);
    child = started;
    let exit: number | null | undefined;
    gone = new Promise(resolve => {
      started.once('exit', (code, signal) => {
        exit = code ?? -1;
        resolve(signal ?? code ?? -1);
      });
    });
    ref = started.pid === undefined ? undefined : await procRef(started.pid);
    await poll('the daemon', FIXTURES === undefined ? 60_000 : 180_000, async () => {
      if (exit !== undefined)
        throw new Error(`nexusd ended with ${exit}: ${await readFile(join(data_dir, 'nexusd.log'), 'utf8')}`);
      return client.daemon.ping({}).then(
        () => true,
        () => undefined,
      );
    });
    opened = await countOpen(ref?.pid ?? 0);
  };
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise(resolve => child?.once('exit', resolve));
    child.kill(signal);
    await gone;
  };
  const client = new Nexus({ socket });
  const vmms = async () => {
    const found: number[] = [];
    for (const pid of await processesIn(data_dir, ref?.pid)) {
      const args = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
      if (vmOf(args.split('\0')) !== undefined) found.push(pid);
    }
    return found;
  };
  const remove = async () => {
    await rm(data_dir, { recursive: true, force: true });
    await standin?.[Symbol.asyncDispose]();
  };
  try {
    await start();
  } catch (error) {
    await end('SIGKILL');
    await remove();
    throw error;
  }
  const w: World = {
    data_dir,
    socket,
    client,
    ctl: (...args) =>
      runAny([process.execPath, main, 'nexusctl', '--socket', socket, ...args], { env, timeout_ms: 120_000 }),
    ended: () => gone,
    open: () => opened,
    daemon: () => ref ?? { pid: -1, start_ticks: 0, boot_id: bootId() },
    kill: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
    start,
    behave: (vars, vm_id) => standin?.behave(vars, vm_id) ?? Promise.reject(new Error('this world has no stand-in')),
    vmms,
    log: () => readFile(join(data_dir, 'nexusd.log'), 'utf8'),
    [Symbol.asyncDispose]: async () => {
      const left: string[] = [];
      try {
        if (ref !== undefined && (await isAlive(ref))) left.push(...(await audit(w)));
        await end('SIGTERM');
        for (const pid of await vmms()) process.kill(pid, 'SIGKILL');
        for (const { proc } of await findKeepers(join(data_dir, 'vms'))) await signalProc(proc, 'SIGKILL');
        left.push(...(await remains(data_dir)));
        await (await openCgroups(data_dir)).sweep(); // of VMMs that no daemon saw end
      } finally {
        await end('SIGKILL');
        await remove();
      }
      if (left.length > 0) throw new Error(`left behind:\n${left.join('\n')}`);
    },
  };
  return w;
};

/** Processes whose working directory lies in `dir`. */
export const processesIn = async (dir: string, except?: number): Promise<number[]> => {
  const { readlink } = await import('node:fs/promises');
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === except) continue;
    const cwd = await readlink(`/proc/${name}/cwd`).catch(() => '');
    const ref = cwd.startsWith(`${dir}/`) ? await procRef(Number(name)) : undefined;
    if (ref !== undefined && (await isAlive(ref))) found.push(Number(name));
  }
  return found;
};

/** Immutable files are linked, the rest is copied. */
export const copySeed = async (from: string, to: string): Promise<void> => {
  for (const dir of ['kernels', 'rootfs', 'images']) {
    for (const path of await readdir(join(from, dir), { recursive: true, withFileTypes: true })) {
      if (!path.isFile()) continue;
      const source = join(path.parentPath, path.name);
      const target = join(to, source.slice(from.length + 1));
      await mkdir(dirname(target), { recursive: true, mode: 0o700 });
      await link(source, target).catch(() => cp(source, target));
    }
  }
  for (const name of await readdir(from)) {
    if (name.startsWith('state.db')) await cp(join(from, name), join(to, name));
  }
};

/** Seeds of other sources are of no use; one of the last hour may be another run's. */
const forgetSeeds = async (root: string, keep: string): Promise<void> => {
  for (const name of await readdir(root)) {
    const path = join(root, name);
    const { mtimeMs } = await stat(path);
    if (path !== keep && !path.startsWith(keep) && Date.now() - mtimeMs > 3_600_000)
      await rm(path, { recursive: true });
  }
};

/** A data directory with a kernel and an image, made through the API once a day and kept in .cache. */
export const seed = async (): Promise<string> => {
  if (FIXTURES !== undefined) return join(FIXTURES, 'seed');
  const agent = await agentBinaries();
  const day = new Date().toISOString().slice(0, 10);
  const hash = createHash('sha256')
    .update(day)
    .update(await readFile(agent.agent_x86_64));
  for (const dir of ['assets', 'images', 'disk', 'store']) {
    for (const name of (await readdir(join(REPO, 'src', dir))).sort())
      hash.update(await readFile(join(REPO, 'src', dir, name)));
  }
  const root = join(REPO, '.cache', 'world');
  const final = join(root, `${hash.digest('hex').slice(0, 16)}-${process.getuid?.()}`);
  if (await exists(final)) return final;
  await mkdir(root, { recursive: true });
  await using w = await world({ qemu: 'real' });
  const done = async (job: { id: string }) => {
    const end = await w.client.job.wait({ job: job.id, timeout_ms: 600_000 });
    if (end.state !== 'succeeded') throw new Error(`${end.kind}: ${end.error?.detail}`);
  };
  const kernels = w.client.kernel.download({ version: '6.12', provider: 'debian' }).then(done);
  await w.client.rootfs.download({ distro: 'debian', version: '12' }).then(done);
  await w.client.image.build({ name: 'debian', rootfs: 'debian:12' }).then(done);
  await kernels;
  await w.stop();
  const temp = `${final}.${process.pid}`;
  await cp(w.data_dir, temp, { recursive: true, filter: path => !path.endsWith('.sock') });
  await forgetSeeds(root, final);
  await rename(temp, final).catch(async error => {
    await rm(temp, { recursive: true, force: true });
    if (!(await exists(final))) throw error;
  });
  return final;
};
