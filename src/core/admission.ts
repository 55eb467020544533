/** Everything about a start that can be refused before anything is touched. */
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { Kernel } from '../api/kernel.ts';
import { exists } from '../lib/files.ts';
import type { VmRecord } from '../store/store.ts';
import type { MachineSpec, Vmm } from '../vmm/machine.ts';
import { needKernel } from './find.ts';
import type { Host } from './host.ts';
import { useAsset } from './using.ts';

/** What a start needs; its kernel cannot be removed until disposed. */
export interface Assets extends Disposable {
  vmm: Vmm;
  kernel: Kernel;
  disks: MachineSpec['disks'];
  /** What the guest's agent is to know of its root, for the kernel's command line. */
  root_words: string[];
}

/** Everything that can be refused before anything is touched. */
export const admitAssets = async (host: Host, vm: VmRecord): Promise<Assets> => {
  if (vm.root_ws_id === null) {
    throw new Fault('bad_state', `Cannot start VM '${vm.name}': it has no root workspace.`, {
      hint: `nexusctl ws attach <workspace> --vm ${vm.name} --role root`,
    });
  }
  const kernel = vm.kernel_id === null ? (await host.store.listKernels())[0] : await needKernel(host, vm.kernel_id);
  if (kernel === undefined) {
    throw new Fault('not_found', `Cannot start VM '${vm.name}': there is no kernel.`, {
      hint: 'nexusctl kernel download --provider debian',
    });
  }
  const vmm = await host.vmms.choose(vm.vmm);
  const { disks, root_words } = await admitDisks(host, vm);
  const used = await useAsset(host, kernel, needKernel);
  return { vmm, kernel, disks, root_words, [Symbol.dispose]: () => used[Symbol.dispose]() };
};

const rootWords = (image: Image | undefined): string[] => [
  'nexus.root=/dev/vda',
  `nexus.init=${image === undefined || image.init === 'agent' ? 'agent' : 'image'}`,
  ...(image === undefined ? [] : [`nexus.image=${image.id}`, `nexus.image_name=${image.name}`]),
];

const admitDisks = async (host: Host, vm: VmRecord): Promise<Pick<Assets, 'disks' | 'root_words'>> => {
  const all = await host.store.listWs({ vm_id: vm.id });
  const order = [...all.filter(w => w.role === 'root'), ...all.filter(w => w.role === 'data').reverse()];
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
    disks.push({ id: ws.id, path, read_only: false });
  }
  const root = order[0];
  const image = root?.image_id ? await host.store.findImage(root.image_id) : undefined;
  return { disks, root_words: rootWords(image) };
};
