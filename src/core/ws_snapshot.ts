/** A new workspace that begins as another one is. */
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import { VM_VERBS } from '../api/vm_state.ts';
import type { Workspace } from '../api/ws.ts';
import { makeDisk } from './disk_notes.ts';
import { lockVm, needVm, needWs } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { needNoStray } from './stray.ts';
import { useAsset } from './using.ts';
import { blankWs, CLONE_MS, freeName, insertWs } from './ws_make.ts';

/** While its VM runs the disk changes, and what the guest has not written yet would be missing. */
export const snapshotWs = async (host: Host, input: OpIn<'ws.snapshot'>): Promise<Workspace> => {
  const source = await needWs(host, input.ws);
  const id = newId('ws');
  const copy = { id, name: await freeName(host, id, input.name) };
  if (source.vm_id === null) return copyWs(host, source, copy);
  const vm = await needVm(host, source.vm_id);
  await using held = await lockVm(host, vm, 'attach', 'ws.snapshot');
  const now = await needVm(host, vm.id);
  if (!VM_VERBS.attach.includes(now.state)) {
    const why = `its VM '${vm.name}' is ${now.state}, and a disk in use is never whole`;
    throw new Fault('bad_state', `Cannot take a snapshot of workspace '${source.name}': ${why}.`, {
      hint: `nexusctl vm stop ${vm.name}, then take it and start the VM again`,
    });
  }
  await needNoStray(host, now);
  return await copyWs(host, source, copy, held.signal);
};

const copyWs = async (
  host: Host,
  source: Workspace,
  { id, name }: Pick<Workspace, 'id' | 'name'>,
  signal?: AbortSignal,
): Promise<Workspace> => {
  using _making = host.uses.use(id);
  using _used = await useAsset(host, source, needWs);
  const now = await needWs(host, source.id);
  if (now.vm_id !== source.vm_id)
    throw new Fault('bad_state', `Cannot take a snapshot of workspace '${source.name}': it has changed its VM.`);
  const limits = [AbortSignal.timeout(CLONE_MS), host.closing, ...(signal === undefined ? [] : [signal])];
  await host.step('snapshot.make', () =>
    makeDisk(host, id, () => host.disks.snapshot(source.id, id, AbortSignal.any(limits))),
  );
  const { size_bytes } = await host.disks.usage('workspaces', id);
  const { image_id } = now;
  return insertWs(host, { ...blankWs(id, name, size_bytes), image_id, source_ws_id: source.id });
};
