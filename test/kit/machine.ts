/** A real machine and its guest in this very process: no daemon in between, so that a test may cut what it likes. */
import { chmod, copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import type { VmmKind } from '../../src/api/vm.ts';
import { writeInitrd } from '../../src/assets/initrd.ts';
import { type Guest, openGuest } from '../../src/guest/guest.ts';
import { silentLog } from '../../src/lib/log.ts';
import { run, signalProc } from '../../src/lib/proc.ts';
import { type Console, openConsole } from '../../src/vmm/console.ts';
import { openFirecracker } from '../../src/vmm/firecracker.ts';
import { gatherHostFacts } from '../../src/vmm/host_facts.ts';
import type { Machine, Vmm } from '../../src/vmm/machine.ts';
import { openQemu } from '../../src/vmm/qemu.ts';
import { agentBinaries } from './agent.ts';
import { type TestKernel, testKernel } from './assets.ts';
import { firecrackerProgram } from './firecracker.ts';
import { openStandin } from './standin.ts';
import { seed } from './world.ts';

export interface BareMachine extends AsyncDisposable {
  readonly vmm: Vmm;
  readonly machine: Machine;
  readonly guest: Guest;
  readonly console: Console;
  /** What the guest announced of its end, as `kind by who`. */
  readonly endings: string[];
  /** The file of its root. */
  readonly disk: string;
  /** Those beside its root. */
  readonly disks: readonly string[];
  /** How often the guest rang. */
  bells(): number;
  /** Cuts the control connection from the host's side, in the middle of whatever it carries. */
  cut(): void;
  /** Cuts every egress connection. */
  cutEgress(): void;
  /** Lets go of machine and guest as a daemon that ends does, and takes the VMM over as the next one does. */
  adopt(): Promise<void>;
}

export interface BareOptions {
  /** Default: QEMU. */
  vmm?: VmmKind;
  /** Its program: the real one, its stand-in, or a path. Default: real. */
  program?: 'real' | 'standin' | string;
  /** A root of another make, which is copied; its own init becomes PID 1, unless `init` says otherwise. */
  image?: string;
  init?: 'agent' | 'image';
  kernel?: TestKernel;
  memory_mib?: number;
  /** Files that become /dev/vdb and so on; they are used as they are. */
  disks?: readonly string[];
  vcpus?: number;
  /** How long the guest may take to ring. */
  ring_ms?: number;
  /** Further kernel parameters. */
  cmdline?: readonly string[];
  disk_rate_bytes?: number;
  disk_rate_ops?: number;
}

const ID = 'vm_01h455vb4pex5vsknk084sn02q';

/** The files of a kernel and of a root: the seed's, or those asked for. */
const files = async ({ image, kernel: other }: BareOptions) => {
  if (image !== undefined) return { ...(other ?? (await testKernel('6.12'))), image };
  const from = await seed();
  const one = async (name: string) => join(from, name, (await readdir(join(from, name)))[0] ?? '');
  const kernel = await one('kernels');
  const at = (name: string) => join(kernel, name);
  return { vmlinux: at('vmlinux'), modules: at('modules.cpio'), image: join(await one('images'), 'disk.raw') };
};

/** Files in `dir` of which a machine is made. */
const place = async (dir: string, options: BareOptions, signal: AbortSignal) => {
  const at = (name: string) => join(dir, name);
  const placed = { kernel: at('vmlinux'), initrd: at('initrd.cpio'), disk: at('disk.raw') };
  if (options.program === 'standin') {
    for (const path of Object.values(placed)) await writeFile(path, 'x'.repeat(4096));
    return placed;
  }
  const { vmlinux, modules, image } = await files(options);
  await run(['cp', '--sparse=always', image, placed.disk]);
  await chmod(placed.disk, 0o600); // an image is read-only, and only root would not notice
  await copyFile(vmlinux, placed.kernel);
  const { agent_x86_64: agent } = await agentBinaries();
  await writeInitrd({ modules, agent, out: placed.initrd, signal });
  return placed;
};

const log = silentLog();

const driver = async (options: BareOptions, made: AsyncDisposableStack): Promise<Vmm> => {
  const { vmm: kind = 'qemu', program = 'real' } = options;
  const { probe, harness } = await agentBinaries();
  if (kind === 'firecracker' && program !== 'standin') {
    // no probe has to say so: it runs or it does not
    const host = { kvm: { usable: true, reason: 'ok', why: 'the test wants it' }, tsc_khz: null };
    return openFirecracker({
      host: () => host,
      log,
      program: program === 'real' ? await firecrackerProgram() : program,
    });
  }
  if (program === 'standin') {
    const host = { kvm: { usable: kind === 'firecracker', reason: 'standin', why: 'it is a stand-in' }, tsc_khz: null };
    const standin = made.use(await openStandin(kind, { harness }));
    return OPEN[kind]({ host: () => host, log, program: standin.program });
  }
  const host = await gatherHostFacts(probe, log);
  return openQemu({ host: () => host, log, ...(program !== 'real' && { program }) });
};

const OPEN = { qemu: openQemu, firecracker: openFirecracker } as const;

/** A machine in the hands of a daemon in little. */
class Held {
  readonly machine: Machine;
  readonly guest: Guest;
  readonly endings: string[];
  bells = 0;
  #control: Duplex | undefined;
  readonly #egress = new Set<Duplex>();

  constructor(machine: Machine, endings: string[]) {
    this.machine = machine;
    this.endings = endings;
    this.guest = openGuest({
      open: async signal => {
        this.#control = await machine.openControl(signal);
        return this.#control;
      },
      onBell: () => {
        this.bells++;
      },
      onState: () => {},
      onEnding: (kind, by) => endings.push(`${kind} by ${by}`),
      log,
    });
    machine.onEgress(stream => {
      this.#egress.add(stream.once('close', () => this.#egress.delete(stream)));
      void this.guest.serveEgress(stream);
    });
  }

  cut(): void {
    this.#control?.destroy();
  }

  cutEgress(): void {
    for (const stream of this.#egress) stream.destroy();
  }

  async letGo(): Promise<void> {
    await this.guest[Symbol.asyncDispose]();
    await this.machine.release();
  }
}

/** Boots the seed's kernel and image, or another image; resolves when the guest is ready. */
export const bareMachine = async (options: BareOptions = {}): Promise<BareMachine> => {
  await using made = new AsyncDisposableStack();
  const signal = AbortSignal.timeout(options.ring_ms ?? 120_000);
  const dir = await mkdtemp(join(tmpdir(), 'nxm-'));
  made.defer(() => rm(dir, { recursive: true }));
  const run_dir = join(dir, 'run');
  await mkdir(run_dir);
  const { kernel, initrd, disk } = await place(dir, options, signal);
  const vmm = await driver(options, made);
  const console = await openConsole({ fifo: join(run_dir, 'console'), log: join(dir, 'console.log') });
  made.defer(() => console.close());
  const init = options.init ?? (options.image === undefined ? 'agent' : 'image');
  const spec = {
    id: ID,
    dir: run_dir,
    vcpus: options.vcpus ?? 2,
    memory_mib: options.memory_mib ?? 512,
    kernel,
    initrd,
    cmdline: ['nexus.root=/dev/vda', `nexus.init=${init}`, 'nexus.hostname=bare', ...(options.cmdline ?? [])],
    disks: [disk, ...(options.disks ?? [])].map((path, n) => ({ id: `disk${n}`, path, read_only: false })),
    disk_rate_bytes: options.disk_rate_bytes ?? null,
    disk_rate_ops: options.disk_rate_ops ?? null,
    vsock_cid: 3,
    uid: null,
  };
  const endings: string[] = [];
  let held = new Held(await vmm.start(spec, signal, async () => {}), endings);
  made.defer(async () => {
    await signalProc(held.machine.proc, 'SIGKILL');
    await held.machine.ended;
    await held.letGo();
  });
  await held.guest.ready(signal).catch(async error => {
    throw new Error(`the guest did not ring: ${error}\n${(await console.tail(40)).join('\n')}`, { cause: error });
  });
  const owned = made.move();
  return {
    vmm,
    get machine() {
      return held.machine;
    },
    get guest() {
      return held.guest;
    },
    console,
    endings,
    disk,
    disks: options.disks ?? [],
    bells: () => held.bells,
    cut: () => held.cut(),
    cutEgress: () => held.cutEgress(),
    adopt: async () => {
      const { proc, accel } = held.machine;
      await held.letGo();
      const limit = AbortSignal.timeout(60_000);
      held = new Held(await vmm.adopt({ id: ID, dir: run_dir, vsock_cid: 3, proc, accel }, limit), endings);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
};
