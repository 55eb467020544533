/** Everything about a start that can be refused before anything is touched. */
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { Kernel } from '../api/kernel.ts';
import type { Workspace } from '../api/ws.ts';
import { hostArch } from '../lib/arch.ts';
import { exists } from '../lib/files.ts';
import type { VmRecord } from '../store/store.ts';
import type { MachineSpec, Vmm } from '../vmm/machine.ts';
import { usualAsset } from './asset.ts';
import { needAsset, needKernel } from './find.ts';
import { firecrackerOf } from './firecracker.ts';
import type { Host } from './host.ts';
import { needNoStray } from './stray.ts';
import { useAsset } from './using.ts';
import { deviceName } from './ws_view.ts';

/** What a start needs; its kernel and its Firecracker cannot be removed until disposed. */
export interface Assets extends Disposable {
  vmm: Vmm;
  /** Of that VMM as it was admitted: another one may become the usual one meanwhile. */
  program: string;
  version: string | null;
  kernel: Kernel;
  /** The Firecracker of the store that starts it. */
  firecracker_id: string | undefined;
  disks: MachineSpec['disks'];
  /** What the guest's agent is to know of its disks, for the kernel's command line. */
  guest_words: string[];
}

/** Everything that can be refused before anything is touched. */
export const admitAssets = async (host: Host, vm: VmRecord): Promise<Assets> => {
  if (vm.root_ws_id === null) {
    throw new Fault('bad_state', `Cannot start VM '${vm.name}': it has no root workspace.`, {
      hint: `nexusctl ws attach <workspace> ${vm.name} --role root`,
    });
  }
  const kernel = vm.kernel_id === null ? await usualAsset(host, 'kernel') : await needKernel(host, vm.kernel_id);
  if (kernel === undefined) {
    throw new Fault('not_found', `Cannot start VM '${vm.name}': there is no kernel.`, {
      hint: 'nexusctl kernel download --provider debian',
    });
  }
  if (kernel.arch !== hostArch()) {
    throw new Fault('unsupported', `Cannot start VM '${vm.name}': kernel ${kernel.version} is for ${kernel.arch}.`);
  }
  await needNoStray(host, vm);
  const vmm = await host.vmms.choose(vm.vmm);
  const { disks, guest_words } = await admitDisks(host, vm);
  using stack = new DisposableStack();
  stack.use(await useAsset(host, kernel, needKernel));
  const { program, version } = vmm.facts();
  const firecracker = vmm.kind === 'firecracker' ? await firecrackerOf(host, program) : undefined;
  if (firecracker !== undefined)
    stack.use(await useAsset(host, firecracker, (_host, id) => needAsset(host, 'firecracker', id)));
  const held = stack.move();
  return {
    ...{ vmm, program, version, kernel, firecracker_id: firecracker?.id, disks, guest_words },
    [Symbol.dispose]: () => held.dispose(),
  };
};

const rootWords = (image: Image | undefined): string[] => [
  'nexus.root=/dev/vda',
  `nexus.init=${image === undefined || image.init === 'agent' ? 'agent' : 'image'}`,
  ...(image === undefined ? [] : [`nexus.image=${image.id}`, `nexus.image_name=${image.name}`]),
  ...(image?.build_id == null ? [] : [`nexus.build=${image.build_id}`]),
];

/** Those above others first: a disk that is mounted over another's place hides it. */
const byPlace = (a: Workspace, b: Workspace): number => ((a.mount ?? '') < (b.mount ?? '') ? -1 : 1);

/** What the initramfs mounts beside the root. */
const mountWord = ({ position, mount, read_only }: Workspace): string[] =>
  mount === null ? [] : [`nexus.mount=${deviceName(position ?? 0)}:${mount}${read_only ? ':ro' : ''}`];

const admitDisks = async (host: Host, vm: VmRecord): Promise<Pick<Assets, 'disks' | 'guest_words'>> => {
  const order = await host.store.wsOfVm(vm.id);
  const disks = [];
  for (const ws of order) {
    const path = host.disks.path('workspaces', ws.id);
    if (!(await exists(path))) {
      throw new Fault(
        'host',
        `Cannot start VM '${vm.name}': the disk of workspace '${ws.name}' is missing (${path}).`,
        {
          hint: `detach it: nexusctl ws detach ${ws.name}`,
        },
      );
    }
    disks.push({ id: ws.id, path, read_only: ws.read_only });
  }
  const root = order[0];
  const image = root?.image_id ? await host.store.findImage(root.image_id) : undefined;
  return { disks, guest_words: [...rootWords(image), ...order.toSorted(byPlace).flatMap(mountWord)] };
};
