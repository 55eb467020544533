/** A real machine and its guest in this very process: no daemon in between, so that a test may cut what it likes. */
import { copyFile, cp, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { writeInitrd } from '../../src/assets/initrd.ts';
import { type Guest, openGuest } from '../../src/guest/guest.ts';
import { silentLog } from '../../src/lib/log.ts';
import { type Console, openConsole } from '../../src/vmm/console.ts';
import type { Machine } from '../../src/vmm/machine.ts';
import { openQemu } from '../../src/vmm/qemu.ts';
import { agentBinaries } from './agent.ts';
import { seed } from './world.ts';

export interface BareMachine extends AsyncDisposable {
  readonly machine: Machine;
  readonly guest: Guest;
  readonly console: Console;
  /** Cuts the control connection from the host's side, in the middle of whatever it carries. */
  cut(): void;
}

/** Boots the seed's kernel and image; resolves when the guest is ready. */
export const bareMachine = async (): Promise<BareMachine> => {
  const from = await seed();
  const agent = await agentBinaries();
  const dir = await mkdtemp(join(tmpdir(), 'nxm-'));
  const one = async (name: string) => join(from, name, (await readdir(join(from, name)))[0] ?? '');
  const kernel = await one('kernels');
  const signal = AbortSignal.timeout(120_000);
  const run = join(dir, 'run');
  await mkdir(run);
  await cp(join(await one('images'), 'disk.raw'), join(dir, 'disk.raw'));
  await copyFile(join(kernel, 'vmlinux'), join(dir, 'vmlinux'));
  const initrd = join(dir, 'initrd.cpio');
  await writeInitrd({ modules: join(kernel, 'modules.cpio'), agent: agent.agent_x86_64, out: initrd, signal });
  const log = silentLog();
  const vmm = await openQemu({ probe: agent.probe, log });
  const { accel, tsc_khz } = vmm.facts();
  const console = await openConsole({ fifo: join(run, 'console'), log: join(dir, 'console.log') });
  const machine = await vmm.start(
    {
      id: 'vm_01h455vb4pex5vsknk084sn02q',
      dir: run,
      vcpus: 2,
      memory_mib: 512,
      accel,
      kernel: join(dir, 'vmlinux'),
      initrd,
      cmdline: ['nexus.root=/dev/vda', 'nexus.init=agent', 'nexus.hostname=bare', 'nexus.transport=serial'],
      disks: [{ id: 'root', path: join(dir, 'disk.raw'), read_only: false }],
      tsc_khz,
      uid: null,
    },
    signal,
    async () => {},
  );
  let control: Duplex | undefined;
  const guest = openGuest({
    open: async s => {
      control = await machine.openControl(s);
      return control;
    },
    onState: () => {},
    onEnding: () => {},
    log,
  });
  machine.onEgress(stream => void guest.serveEgress(stream));
  await guest.ready(signal);
  return {
    machine,
    guest,
    console,
    cut: () => control?.destroy(),
    [Symbol.asyncDispose]: async () => {
      await guest[Symbol.asyncDispose]();
      await machine.signal('SIGKILL');
      await machine.ended;
      await machine.release();
      await console.close();
      await rm(dir, { recursive: true });
    },
  };
};
