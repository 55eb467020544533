import { Name } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { Vm } from '../api/vm.ts';
import { blankVm } from '../api/vm_ops.ts';
import type { Workspace } from '../api/ws.ts';
import type { NewVm, VmFilter, VmRecord } from '../store/store.ts';
import { needImage, needKernel, needVm, needWs, publicVm } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { inspectVm } from './inspect.ts';
import { vmLogs } from './logs.ts';
import { tellState } from './move.ts';
import { withNotice } from './notice.ts';
import { pauseVm, resumeVm } from './pause.ts';
import { restartVm } from './restart.ts';
import { startVm } from './start.ts';
import { deleteVm, stopVm } from './stop.ts';
import { vmTop } from './top.ts';
import { useAsset } from './using.ts';
import { waitVm } from './wait.ts';

/** A full copy of a large image on a slow disk. */
const CLONE_MS = 600_000;

export const vmHandlers = (host: Host): HandlersOf<'vm'> => ({
  'vm.create': (ctx, input) => createVm(host, input, ctx.actor),
  'vm.list': async (_ctx, input) => (await host.store.listVms(filterOf(input))).map(publicVm),
  'vm.update': async (_ctx, { vm, ...changes }) => {
    const { id } = await needVm(host, vm);
    const given = Object.entries(changes).filter(([, value]) => value !== undefined);
    if (given.length === 0) throw new Fault('invalid', `Cannot update VM '${vm}': no change was given.`);
    return publicVm(await host.store.patchVm(id, Object.fromEntries(given)));
  },
  'vm.get': async (_ctx, input) => publicVm(await needVm(host, input.vm)),
  'vm.start': async (ctx, { vm, wait, timeout_ms }) =>
    withNotice(host, await startVm(host, vm, { wait, timeout_ms, actor: ctx.actor })),
  'vm.stop': (ctx, { vm, force, timeout_ms }) =>
    stopVm(host, vm, { force, timeout_ms, actor: ctx.actor, again: false }),
  'vm.restart': async (ctx, { vm, ...options }) =>
    withNotice(host, await restartVm(host, vm, { ...options, actor: ctx.actor })),
  'vm.pause': (ctx, { vm }) => pauseVm(host, vm, ctx.actor),
  'vm.resume': (ctx, { vm }) => resumeVm(host, vm, ctx.actor),
  'vm.wait': (_ctx, { vm, for: wanted, timeout_ms }) => waitVm(host, vm, wanted, timeout_ms),
  'vm.delete': async (_ctx, { vm, keep_disk }) => {
    await deleteVm(host, vm, { keep_disk });
    return {};
  },
  'vm.history': async (_ctx, { vm, limit }) => host.store.vmHistory((await needVm(host, vm)).id, limit),
  'vm.inspect': (_ctx, { vm }) => inspectVm(host, vm),
  'vm.top': async (ctx, input) => vmTop(host, input, AbortSignal.any([ctx.signal, host.closing])),
  'vm.logs': async (ctx, input) => vmLogs(host, await needVm(host, input.vm), input, ctx.signal),
});

const filterOf = ({ state, tag }: OpIn<'vm.list'>): VmFilter => ({
  ...(state === undefined ? {} : { state }),
  ...(tag === undefined ? {} : { tags: tag }),
});

const createVm = async (host: Host, input: OpIn<'vm.create'>, _actor: string): Promise<Vm> => {
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

const blank = (input: OpIn<'vm.create'>, id: string, kernel_id: string | null): NewVm => ({
  ...blankVm(input, id, Date.now()),
  kernel_id,
  run: null,
});

const uidOption = (host: Host) => (host.first_host_uid === null ? {} : { first_host_uid: host.first_host_uid });

/** <vm>-root, or a name made of the ID where that is taken or too long. */
const rootName = async (host: Host, vm: string, ws_id: string): Promise<string> => {
  const name = `${vm}-root`;
  const good = Name.safeParse(name).success && (await host.store.findWs(name)) === undefined;
  return good ? name : ws_id.replace('_', '-');
};

const createWithImage = async (
  host: Host,
  input: OpIn<'vm.create'>,
  id: string,
  kernel_id: string | null,
): Promise<Vm> => {
  const image = input.image === undefined ? (await host.store.listImages())[0] : await needImage(host, input.image);
  if (image === undefined) {
    throw new Fault('not_found', `Cannot create VM '${input.name}': there is no image.`, {
      hint: 'nexusctl rootfs download debian 12, then nexusctl image build base --rootfs debian:12',
    });
  }
  using _used = await useAsset(host, image, needImage);
  const ws_id = newId('ws');
  const ws: Workspace = {
    id: ws_id,
    name: await rootName(host, input.name, ws_id),
    image_id: image.id,
    size_bytes: input.root_size_bytes,
    vm_id: id,
    role: 'root',
    owned: true,
    created_at_ms: Date.now(),
  };
  const deadline = AbortSignal.any([AbortSignal.timeout(CLONE_MS), host.closing]);
  await host.step('create.clone', () => host.disks.clone(image.id, ws_id, input.root_size_bytes, deadline));
  try {
    const vm = { ...blank(input, id, kernel_id), image_id: image.id, root_ws_id: ws_id };
    const inserted = await host.step('create.insert', () => host.store.insertVm(vm, { ws, ...uidOption(host) }));
    return created(host, inserted);
  } catch (error) {
    await host.disks.removeWs(ws_id);
    throw error;
  }
};

const createWithWs = async (
  host: Host,
  input: OpIn<'vm.create'>,
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
  const vm = { ...blank(input, id, kernel_id), image_id: ws.image_id, root_ws_id: ws.id };
  return created(host, await host.step('create.insert', () => host.store.insertVm(vm, uidOption(host))));
};

const created = (host: Host, vm: VmRecord): Vm => {
  tellState(host, vm, { to: 'created', why: 'created', actor: 'api' });
  return publicVm(vm);
};
