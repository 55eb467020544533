import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { Workspace } from '../api/ws.ts';
import type { VmRecord } from '../store/store.ts';
import { removeDisk } from './disk_notes.ts';
import { admit, lockVm, needVm, needWs } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { needNoStray } from './stray.ts';
import { takeWs } from './using.ts';
import { growWs } from './ws_grow.ts';
import { createWs } from './ws_make.ts';
import { snapshotWs } from './ws_snapshot.ts';
import { inspectWs, listWs } from './ws_view.ts';

export const wsHandlers = (host: Host): HandlersOf<'ws'> => ({
  'ws.create': (_ctx, input) => createWs(host, input),
  'ws.list': () => listWs(host),
  'ws.inspect': async (_ctx, { ws }) => inspectWs(host, await needWs(host, ws)),
  'ws.update': (_ctx, input) => growWs(host, input),
  'ws.attach': (_ctx, input) => attachWs(host, input),
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
  'ws.snapshot': (_ctx, input) => snapshotWs(host, input),
  'ws.remove': async (_ctx, { ws }) => {
    const workspace = await needWs(host, ws);
    const { id } = workspace;
    using _taken = takeWs(host, workspace, 'remove');
    // the record first: a crash in between leaves a disk that its removal noted, and the next start sweeps it
    await host.step('ws.record', () => host.store.removeWs(id));
    await host.step('ws.disk', () => removeDisk(host, id));
    return {};
  },
});

const attachWs = async (host: Host, input: OpIn<'ws.attach'>): Promise<Workspace> => {
  const { role, mount = null, read_only } = input;
  if (role === 'root' && (mount !== null || read_only)) {
    throw new Fault('invalid', 'A root is mounted writable on /: --mount and --read-only are for data disks.');
  }
  const ws = await needWs(host, input.ws);
  return withVm(host, await needVm(host, input.vm), 'ws.attach', async id => {
    using _taken = takeWs(host, ws, 'attach');
    return await host.step('ws.attach', () => host.store.attachWs(ws.id, id, { role, mount, read_only }));
  });
};

/** Under the VM's lock, and only where its disks may change. */
const withVm = async <T>(host: Host, vm: VmRecord, verb: string, work: (id: string) => Promise<T>): Promise<T> => {
  await using _ = await lockVm(host, vm, 'attach', verb);
  const now = await needVm(host, vm.id);
  admit(now, 'attach');
  await needNoStray(host, now);
  return await work(now.id);
};
