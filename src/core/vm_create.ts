/** A new VM: its record, and a root workspace of its own or one that is there. */
import { Name } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { Vm } from '../api/vm.ts';
import { blankVm } from '../api/vm_ops.ts';
import type { Workspace } from '../api/ws.ts';
import { diskLength } from '../lib/size.ts';
import type { NewVm, VmRecord } from '../store/store.ts';
import { makeDisk, removeDisk } from './disk_notes.ts';
import { needImage, needKernel, needWs, publicVm } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { tellState } from './move.ts';
import { PENDING } from './provision.ts';
import { takeWs, useAsset } from './using.ts';
import { blankWs, CLONE_MS, refuseTooSmall } from './ws_make.ts';

type Input = OpIn<'vm.create'>;

/** Of a root, where the image is not longer. It is sparse. */
const ROOT_BYTES = 8 * 1024 ** 3;

export const createVm = async (host: Host, input: Input): Promise<Vm> => {
  if ((await host.store.findVm(input.name)) !== undefined) {
    throw new Fault('exists', `VM '${input.name}' exists already.`, { hint: `nexusctl vm get ${input.name}` });
  }
  if (input.ws !== undefined && input.image !== undefined) {
    throw new Fault('invalid', 'Give either an image or a workspace, not both.');
  }
  const kernel_id = input.kernel === undefined ? null : (await needKernel(host, input.kernel)).id;
  const id = newId('vm');
  return input.ws === undefined
    ? createWithImage(host, input, id, kernel_id)
    : createWithWs(host, input, id, kernel_id, input.ws);
};

const blank = (input: Input, id: string, kernel_id: string | null, root_ws_id: string): NewVm => ({
  ...blankVm(input, id, Date.now()),
  kernel_id,
  root_ws_id,
  run: null,
  env: input.env,
  ...(isGiven(input)
    ? { provision: PENDING, provision_run: { ws_id: root_ws_id, begun: null } }
    : { provision_run: null }),
});

const isGiven = ({ files, env, first_boot }: Input): boolean =>
  files.length > 0 || Object.keys(env).length > 0 || first_boot !== undefined;

const storeOptions = (host: Host, input: Input) => {
  const { files, first_boot = null, first_boot_timeout_ms } = input;
  return {
    ...(host.first_host_uid === null ? {} : { first_host_uid: host.first_host_uid }),
    ...(isGiven(input) ? { provision: { files, first_boot, first_boot_timeout_ms } } : {}),
  };
};

/** <vm>-root, or a name made of the ID where that is taken or too long. */
const rootName = async (host: Host, vm: string, ws_id: string): Promise<string> => {
  const name = `${vm}-root`;
  const good = Name.safeParse(name).success && (await host.store.findWs(name)) === undefined;
  return good ? name : ws_id.replace('_', '-');
};

const createWithImage = async (host: Host, input: Input, id: string, kernel_id: string | null): Promise<Vm> => {
  const image = input.image === undefined ? (await host.store.listImages())[0] : await needImage(host, input.image);
  if (image === undefined) {
    throw new Fault('not_found', `Cannot create VM '${input.name}': there is no image.`, {
      hint: 'nexusctl rootfs download debian 12, then nexusctl image build base --rootfs debian:12',
    });
  }
  const wanted = input.root_size_bytes ?? Math.max(ROOT_BYTES, image.size_bytes);
  refuseTooSmall(`VM '${input.name}'`, image, wanted);
  const size_bytes = diskLength(wanted);
  using _used = await useAsset(host, image, needImage);
  const ws_id = newId('ws');
  using _making = host.uses.use(ws_id);
  const ws: Workspace = {
    ...blankWs(ws_id, await rootName(host, input.name, ws_id), size_bytes),
    image_id: image.id,
    ...{ vm_id: id, role: 'root', position: 0, owned: true },
  };
  const deadline = AbortSignal.any([AbortSignal.timeout(CLONE_MS), host.closing]);
  await host.step('create.clone', () =>
    makeDisk(host, ws_id, () => host.disks.clone(image.id, ws_id, size_bytes, deadline)),
  );
  try {
    const vm = { ...blank(input, id, kernel_id, ws_id), image_id: image.id };
    const inserted = await host.step('create.insert', () =>
      host.store.insertVm(vm, { ws, ...storeOptions(host, input) }),
    );
    return created(host, inserted);
  } catch (error) {
    await removeDisk(host, ws_id);
    throw error;
  }
};

const createWithWs = async (
  host: Host,
  input: Input,
  id: string,
  kernel_id: string | null,
  ref: string,
): Promise<Vm> => {
  const ws = await needWs(host, ref);
  if (ws.vm_id !== null) {
    throw new Fault('in_use', `Workspace '${ws.name}' is attached to another VM.`, {
      hint: `nexusctl ws detach ${ws.name}`,
    });
  }
  using _taken = takeWs(host, ws, 'attach');
  const vm = { ...blank(input, id, kernel_id, ws.id), image_id: ws.image_id };
  const inserted = await host.step('create.insert', () => host.store.insertVm(vm, storeOptions(host, input)));
  return created(host, inserted);
};

const created = (host: Host, vm: VmRecord): Vm => {
  host.holds.expect(vm);
  tellState(host, vm, { to: 'created', why: 'created', actor: 'api' });
  return publicVm(vm);
};
