import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { Workspace } from '../api/ws.ts';
import type { VmRecord } from '../store/store.ts';
import { admit, lockVm, needImage, needVm, needWs } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { useAsset } from './using.ts';

/** A full copy of a large image on a slow disk. */
const CLONE_MS = 600_000;

export const wsHandlers = (host: Host): HandlersOf<'ws'> => ({
  'ws.create': (_ctx, input) => createWs(host, input),
  'ws.list': () => host.store.listWs(),
  'ws.get': (_ctx, input) => needWs(host, input.ws),
  'ws.attach': async (_ctx, { ws, vm, role }) => {
    const workspace = await needWs(host, ws);
    return withVm(host, await needVm(host, vm), 'ws.attach', id =>
      host.step('ws.attach', () => host.store.attachWs(workspace.id, id, role)),
    );
  },
  'ws.detach': async (_ctx, { ws }) => {
    const workspace = await needWs(host, ws);
    if (workspace.vm_id === null) throw new Fault('bad_state', `Workspace '${workspace.name}' is not attached.`);
    const vm = await needVm(host, workspace.vm_id);
    return withVm(host, vm, 'ws.detach', async () => {
      // it may have gone to another VM meanwhile, whose lock this is not
      if ((await needWs(host, workspace.id)).vm_id === vm.id)
        return host.step('ws.detach', () => host.store.detachWs(workspace.id));
      throw new Fault('bad_state', `Workspace '${workspace.name}' is not attached to VM '${vm.name}' any more.`);
    });
  },
  'ws.remove': async (_ctx, { ws }) => {
    const { id } = await needWs(host, ws);
    // the record first: a crash in between leaves a file that the next start sweeps
    await host.step('ws.record', () => host.store.removeWs(id));
    await host.step('ws.disk', () => host.disks.removeWs(id));
    return {};
  },
});

/** Under the VM's lock, and only where its disks may change. */
const withVm = async <T>(host: Host, vm: VmRecord, verb: string, work: (id: string) => Promise<T>): Promise<T> => {
  await using _ = await lockVm(host, vm, 'attach', verb);
  const now = await needVm(host, vm.id);
  admit(now, 'attach');
  return await work(now.id);
};

const createWs = async (host: Host, input: OpIn<'ws.create'>): Promise<Workspace> => {
  const id = newId('ws');
  const name = input.name ?? id.replace('_', '-');
  if ((await host.store.findWs(name)) !== undefined) throw new Fault('exists', `Workspace '${name}' exists already.`);
  const image = input.image === undefined ? null : await needImage(host, input.image);
  const size_bytes = input.size_bytes ?? image?.size_bytes;
  if (size_bytes === undefined) {
    throw new Fault('invalid', 'Cannot create an empty workspace: its size is missing.', {
      hint: 'give --size, e.g. --size 8G',
    });
  }
  using _used = image === null ? undefined : await useAsset(host, image, needImage);
  const deadline = AbortSignal.any([AbortSignal.timeout(CLONE_MS), host.closing]);
  await host.step('ws.make', () =>
    image === null ? host.disks.empty(id, size_bytes, deadline) : host.disks.clone(image.id, id, size_bytes, deadline),
  );
  const ws: Workspace = {
    id,
    name,
    image_id: image?.id ?? null,
    size_bytes,
    vm_id: null,
    role: null,
    owned: false,
    created_at_ms: Date.now(),
  };
  try {
    await host.step('ws.insert', () => host.store.insertWs(ws));
  } catch (error) {
    await host.disks.removeWs(id);
    throw error;
  }
  return ws;
};
