/** A real machine and its guest in this very process: no daemon in between, so that a test may cut what it likes. */
import { chmod, copyFile, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { writeInitrd } from '../../src/assets/initrd.ts';
import { type Guest, openGuest } from '../../src/guest/guest.ts';
import { silentLog } from '../../src/lib/log.ts';
import { run } from '../../src/lib/proc.ts';
import { type Console, openConsole } from '../../src/vmm/console.ts';
import { gatherHostFacts } from '../../src/vmm/host_facts.ts';
import type { Machine } from '../../src/vmm/machine.ts';
import { openQemu } from '../../src/vmm/qemu.ts';
import { agentBinaries } from './agent.ts';
import { type TestKernel, testKernel } from './assets.ts';
import { seed } from './world.ts';

export interface BareMachine extends AsyncDisposable {
  readonly machine: Machine;
  readonly guest: Guest;
  readonly console: Console;
  /** What the guest announced of its end, as `kind by who`. */
  readonly endings: string[];
  /** The file of its root. */
  readonly disk: string;
  /** Cuts the control connection from the host's side, in the middle of whatever it carries. */
  cut(): void;
}

export interface BareOptions {
  /** A root of another make, which is copied; its own init becomes PID 1, unless `init` says otherwise. */
  image?: string;
  init?: 'agent' | 'image';
  kernel?: TestKernel;
  memory_mib?: number;
  /** Files that become /dev/vdb and so on; they are used as they are. */
  disks?: readonly string[];
}

/** The files of a kernel and of a root: the seed's, or those asked for. */
const files = async ({ image, kernel: other }: BareOptions) => {
  if (image !== undefined) return { ...(other ?? (await testKernel('6.12'))), image };
  const from = await seed();
  const one = async (name: string) => join(from, name, (await readdir(join(from, name)))[0] ?? '');
  const kernel = await one('kernels');
  const at = (name: string) => join(kernel, name);
  return { vmlinux: at('vmlinux'), modules: at('modules.cpio'), image: join(await one('images'), 'disk.raw') };
};

/** Boots the seed's kernel and image, or another image; resolves when the guest is ready. */
export const bareMachine = async (options: BareOptions = {}): Promise<BareMachine> => {
  const { vmlinux, modules, image } = await files(options);
  const agent = await agentBinaries();
  await using made = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), 'nxm-'));
  made.defer(() => rm(dir, { recursive: true }));
  const signal = AbortSignal.timeout(120_000);
  const run_dir = join(dir, 'run');
  await mkdir(run_dir);
  const disk = join(dir, 'disk.raw');
  await run(['cp', '--sparse=always', image, disk]);
  await chmod(disk, 0o600); // an image is read-only, and only root would not notice
  await copyFile(vmlinux, join(dir, 'vmlinux'));
  const initrd = join(dir, 'initrd.cpio');
  await writeInitrd({ modules, agent: agent.agent_x86_64, out: initrd, signal });
  const log = silentLog();
  const vmm = await openQemu({ host: await gatherHostFacts(agent.probe, log), log });
  const console = await openConsole({ fifo: join(run_dir, 'console'), log: join(dir, 'console.log') });
  made.defer(() => console.close());
  const machine = await vmm.start(
    {
      id: 'vm_01h455vb4pex5vsknk084sn02q',
      dir: run_dir,
      vcpus: 2,
      memory_mib: options.memory_mib ?? 512,
      kernel: join(dir, 'vmlinux'),
      initrd,
      cmdline: [
        'nexus.root=/dev/vda',
        `nexus.init=${options.init ?? (options.image === undefined ? 'agent' : 'image')}`,
        'nexus.hostname=bare',
      ],
      disks: [disk, ...(options.disks ?? [])].map((path, n) => ({ id: `disk${n}`, path, read_only: false })),
      disk_rate_bytes: null,
      disk_rate_ops: null,
      vsock_cid: 3,
      uid: null,
    },
    signal,
    async () => {},
  );
  made.defer(async () => {
    await machine.signal('SIGKILL');
    await machine.ended;
    await machine.release();
  });
  let control: Duplex | undefined;
  const endings: string[] = [];
  const guest = openGuest({
    open: async s => {
      control = await machine.openControl(s);
      return control;
    },
    onState: () => {},
    onEnding: (kind, by) => endings.push(`${kind} by ${by}`),
    log,
  });
  made.use(guest);
  machine.onEgress(stream => void guest.serveEgress(stream));
  await guest.ready(signal);
  const owned = made.move();
  return {
    machine,
    guest,
    console,
    endings,
    disk,
    cut: () => control?.destroy(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
};
