/**
 * A longer disk: its file, its record, and where the VM runs, what the VMM and the guest see of it.
 *
 * INVARIANTS: the file is never shorter than the record says. From the record on nothing makes the deed fail: what the running guest
 * does not get now it gets at its next start, and the answer says so. Nobody who stops or deletes the VM waits for a silent VMM or guest.
 */
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import { VM_VERBS } from '../api/vm_state.ts';
import type { Workspace, WsGrown } from '../api/ws.ts';
import { withDeadline } from '../lib/deadline.ts';
import { diskLength, formatBytes } from '../lib/size.ts';
import type { VmRecord } from '../store/store.ts';
import { lockVm, named, needVm, needWs } from './find.ts';
import type { Host, Live } from './host.ts';
import { liveOf } from './live.ts';
import { takeWs } from './using.ts';
import { deviceName } from './ws_view.ts';

/** A guest that emulates looks at a longer disk in less. */
const GUEST_MS = 15_000;

type Fate = Pick<WsGrown, 'file_system' | 'notice'>;

export const growWs = async (host: Host, input: OpIn<'ws.update'>): Promise<WsGrown> => {
  const ws = await needWs(host, input.ws);
  refuseShorter(ws, input.size_bytes);
  const size_bytes = diskLength(input.size_bytes);
  if (ws.vm_id === null) {
    using _taken = takeWs(host, ws, 'lengthen');
    return { ...(await lengthen(host, ws, size_bytes)), file_system: 'at_next_start' };
  }
  const vm = await needVm(host, ws.vm_id);
  await using held = await lockVm(host, vm, 'attach', 'ws.update');
  const now = await needVm(host, vm.id);
  refuseState(ws, now);
  if ((await needWs(host, ws.id)).vm_id !== vm.id)
    throw new Fault('bad_state', `Workspace '${ws.name}' is not attached to VM '${vm.name}' any more.`);
  const longer = await lengthen(host, ws, size_bytes);
  const live = now.state === 'running' ? liveOf(host, vm.id) : undefined;
  return {
    ...longer,
    ...(live === undefined ? later(longer) : await tellGuest(host, now, { live, ws: longer, signal: held.signal })),
  };
};

const refuseShorter = ({ name, size_bytes: has }: Workspace, size_bytes: number): void => {
  if (size_bytes >= has) return;
  const [wish, is] = [size_bytes, has].map(formatBytes);
  throw new Fault('invalid', `Cannot make workspace '${name}' ${wish} long: it has ${is}, and disks do not shrink.`);
};

const refuseState = (ws: Workspace, vm: VmRecord): void => {
  if (vm.state === 'running' || VM_VERBS.attach.includes(vm.state)) return;
  throw new Fault('bad_state', `Cannot lengthen workspace '${ws.name}': its VM '${vm.name}' is ${vm.state}.`, {
    hint: vm.state === 'paused' ? `nexusctl vm resume ${vm.name}` : `nexusctl vm wait ${vm.name}`,
  });
};

const lengthen = async (host: Host, { id, name, size_bytes: had }: Workspace, size_bytes: number) => {
  refuseShorter({ ...(await needWs(host, id)), name }, size_bytes);
  await host.step('grow.file', () => host.disks.grow(id, size_bytes));
  if (size_bytes === had) return needWs(host, id);
  return host.step('grow.record', () => host.store.resizeWs(id, size_bytes));
};

const READ_ONLY: Fate = {
  file_system: 'not_mounted',
  notice: 'Its guest can only read it: the file system grows when it is attached without --read-only.',
};

/** What the agent mounts writable it grows. */
const later = ({ role, mount, read_only }: Workspace): Fate => {
  if (role !== 'root' && mount === null) return { file_system: 'not_mounted' };
  return read_only ? READ_ONLY : { file_system: 'at_next_start' };
};

interface Told {
  live: Live;
  ws: Workspace;
  /** Of the lock of its VM. */
  signal: AbortSignal;
}

const tellGuest = async (host: Host, vm: VmRecord, { live, ws, signal }: Told): Promise<Fate> => {
  const { machine, guest } = live;
  const position = ws.position ?? 0;
  if (ws.read_only && machine.kind === 'qemu') return later(ws); // its block_resize refuses a node that is read-only
  const limit = AbortSignal.any([AbortSignal.timeout(GUEST_MS), host.closing, signal]);
  try {
    await host.step('grow.machine', () =>
      withDeadline('the answer of the VMM', GUEST_MS, machine.resizeDisk(position, ws.size_bytes), limit),
    );
    if (ws.read_only) return later(ws);
    await guest.growDisk(deviceName(position), ws.size_bytes, limit);
    return { file_system: 'grown' };
  } catch (error) {
    host.log.warn({ err: error, vm: ws.vm_id, ws: ws.id }, 'a running guest does not get the new length of a disk');
    if (error instanceof Fault && error.code === 'bad_state') return { file_system: 'not_mounted' };
    return { file_system: 'at_next_start', notice: whyNot(named(vm, error)) };
  }
};

const whyNot = (error: unknown): string => {
  const why = error instanceof Error ? error.message.replace(/\.$/, '') : String(error);
  return `The file system grows at the next start of the VM. ${why}.`;
};
