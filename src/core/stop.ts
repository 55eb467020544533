/** The stories of stop and delete: docs/architecture.md, "A VM's life". */
import { Fault } from '../api/fault.ts';
import type { LastExit, Vm } from '../api/vm.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import type { Workspace } from '../api/ws.ts';
import { removeTree } from '../lib/files.ts';
import type { Held } from '../lib/lock.ts';
import type { VmPatch, VmRecord } from '../store/store.ts';
import { removeDisk } from './disk_notes.ts';
import { endMachine, within } from './end.ts';
import { admit, busy, needVm, publicVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { cannotWrite } from './insist.ts';
import { endKeeperOf } from './keepers.ts';
import { forget, handBack, letGo } from './live.ts';
import { moveVm } from './move.ts';
import { vmDir } from './paths.ts';
import { NOT_OWED, OWED_START } from './restarts.ts';
import { endStrays } from './stray.ts';
import { judge } from './verdict.ts';

/** How long the operation that holds the lock has to unwind. */
const PREEMPT_MS = 10_000;
/** How long a stop waits for the watcher that is storing the end of the VM. */
const WATCHER_MS = 5000;
/** Who starts a VM: of what these do its state may say nothing yet. */
const STARTERS = ['vm.start', 'vm.restart', OWED_START];

export interface StopOptions {
  force: boolean;
  timeout_ms: number;
  actor: string;
  /** It will be started again. */
  again: boolean;
  /** The wish is on disk. */
  onStopping?: () => void;
}

interface TakeOver {
  verb: 'stop' | 'delete';
  /** How long to wait for the lock. */
  ms: number;
  /** A holder that is waited for, not aborted. */
  spare?: string | undefined;
}

/** Takes the VM's lock, aborting the operation that holds it. */
const takeOver = async (host: Host, vm: Vm, { verb, ms, spare }: TakeOver): Promise<Held> => {
  const reason = new Fault('canceled', `The operation on VM '${vm.name}' was ended by vm.${verb}.`);
  const deadline = AbortSignal.timeout(ms);
  try {
    return await host.locks.take(vm.id, `vm.${verb}`, {
      signal: AbortSignal.any([deadline, host.closing]),
      preempt: holder => (holder === spare ? undefined : reason),
    });
  } catch (error) {
    if (!deadline.aborted) throw error;
    throw busy(vm, verb, `${host.locks.holder(vm.id) ?? 'another operation'} does not let go; it`);
  }
};

export const stopVm = async (host: Host, ref: string, options: StopOptions): Promise<Vm> => {
  const asked = await needVm(host, ref);
  const { id } = asked;
  const starts = STARTERS.includes(host.locks.holder(id) ?? '');
  if (!starts && asked.restart_at_ms === null) admit(asked, 'stop');
  // two that ask a guest politely share the answer; force waits for nobody
  const patience = options.force ? PREEMPT_MS : options.timeout_ms + PREEMPT_MS;
  await using held = await takeOver(host, asked, {
    verb: 'stop',
    ms: patience,
    ...(options.force ? {} : { spare: 'vm.stop' }),
  });
  const vm = await needVm(host, id);
  if (VM_LIVE.includes(vm.state)) return await stopLocked(host, vm, options, held.signal);
  // the start was aborted, or another stop was faster
  return vm.restart_at_ms === null || options.again ? publicVm(vm) : await callOff(host, vm, options.actor);
};

/** Stops a VM that lives. The caller has its lock. */
export const stopLocked = async (host: Host, vm: VmRecord, options: StopOptions, signal: AbortSignal): Promise<Vm> => {
  const live = host.live.get(vm.id);
  if (live === undefined) return stopUnheld(host, vm, options);
  if (live.end_owner === 'watcher') {
    // it ended by itself a moment ago; the watcher is writing that down
    await within(live.end_stored.promise, WATCHER_MS);
    const ended = await needVm(host, vm.id);
    return ended.restart_at_ms === null || options.again ? publicVm(ended) : callOff(host, ended, options.actor);
  }
  live.end_owner = 'stop';
  try {
    return await stopHeld(host, vm, live, options, signal);
  } catch (error) {
    handBack(host, live);
    throw error;
  }
};

/** A VM that waits for its restart waits no more. */
const callOff = async (host: Host, vm: VmRecord, actor: string): Promise<Vm> => {
  if (vm.state === 'created') {
    return publicVm(await host.step('stop.calloff', () => host.store.patchVm(vm.id, NOT_OWED)));
  }
  const why = 'The restart was called off: stop was asked for.';
  const move = { to: 'stopped', why, actor, patch: NOT_OWED } as const;
  return publicVm(await host.step('stop.calloff', () => moveVm(host, vm.id, move)));
};

const stopHeld = async (
  host: Host,
  vm: VmRecord,
  live: Live,
  options: StopOptions,
  signal: AbortSignal,
): Promise<Vm> => {
  await stopping(host, vm, options);
  options.onStopping?.();
  const { end, how } = await endMachine(host, live, options, signal);
  live.stopped_how = how;
  const { exit } = await judge(live, end);
  await host.step('stop.letgo', () => letGo(host, live));
  const stopped = await stored(host, vm.id, { ...exit, reason: how }, options);
  forget(host, live);
  return stopped;
};

/** What is owed after a stop. */
const owedBy = (again: boolean): VmPatch => (again ? { restart_at_ms: Date.now() } : NOT_OWED);

/** The wish is on disk before the deed; but a full disk is no reason to let a VM run that shall not: it may be what fills it. */
const stopping = async (host: Host, vm: VmRecord, { again, force, actor }: StopOptions): Promise<void> => {
  const owed = owedBy(again);
  const verb = again ? 'restart' : 'stop';
  try {
    if (vm.state === 'stopping') {
      if (!again && vm.restart_at_ms !== null) await host.step('stop.calloff', () => host.store.patchVm(vm.id, owed));
      return;
    }
    const why = `${verb}${force ? ' by force' : ''} was asked for`;
    await host.step('stop.stopping', () => moveVm(host, vm.id, { to: 'stopping', why, actor, patch: owed }));
  } catch (error) {
    if (!cannotWrite(error)) throw error;
    host.log.error({ err: error, vm: vm.id }, 'cannot store that a VM is being stopped');
  }
};

type Asked = Pick<StopOptions, 'actor' | 'again'>;

const stored = async (host: Host, id: string, exit: LastExit, { actor, again }: Asked): Promise<Vm> => {
  const stopped = await host.step('stop.record', () =>
    moveVm(host, id, {
      to: 'stopped',
      why: exit.reason,
      actor,
      patch: { pid: null, run: null, guest: null, stopped_at_ms: exit.at_ms, last_exit: exit, ...owedBy(again) },
    }),
  );
  return publicVm(stopped);
};

/** The record says that it lives, but nobody holds its VMM: the record could not be written, or the VMM not be adopted. */
const stopUnheld = async (host: Host, { id }: Vm, asked: Asked): Promise<Vm> => {
  await endStrays(host, id);
  const reason = 'Nobody held its VMM; what was left of it was ended.';
  return stored(host, id, { at_ms: Date.now(), reason, exit_code: null, signal: null, console_tail: [] }, asked);
};

/** Deletes a VM in any state: its VMM first, then the record, then what lies on disk. */
export const deleteVm = async (host: Host, ref: string, options: { keep_disk: boolean }): Promise<void> => {
  const asked = await needVm(host, ref);
  const { id } = asked;
  await using held = await takeOver(host, asked, { verb: 'delete', ms: PREEMPT_MS });
  const vm = await needVm(host, id); // a second delete may have been faster
  const removed = await removeRecord(host, vm, options, held.signal);
  host.holds.drop(id);
  host.events.emit('vm.deleted', id, {});
  // from here on it is gone for everybody: what cannot be removed now, the next start of a daemon sweeps
  for (const work of [
    ...removed.map(ws => () => host.step('delete.disk', () => removeDisk(host, ws.id))),
    () => host.step('delete.dir', () => removeTree(host.paths.data, vmDir(host.paths, id))),
  ]) {
    await work().catch(error => host.log.error({ err: error, vm: id }, 'cannot remove a part of a deleted VM'));
  }
};

/** Ends the VMM, then removes the record; gives the workspaces that went with it. */
const removeRecord = async (
  host: Host,
  vm: Vm,
  options: { keep_disk: boolean },
  signal: AbortSignal,
): Promise<Workspace[]> => {
  const live = host.live.get(vm.id);
  if (live === undefined) {
    if (VM_LIVE.includes(vm.state) || host.strays.has(vm.id)) await endStrays(host, vm.id);
    return dropRecord(host, vm, options);
  }
  const watched = live.end_owner === 'watcher'; // it goes on watching: it finds no record, or stores the end
  live.end_owner ??= 'stop';
  try {
    await host.step('delete.kill', () => endMachine(host, live, { force: true, timeout_ms: 0 }, signal));
    await host.step('delete.letgo', () => letGo(host, live));
    const removed = await dropRecord(host, vm, options);
    forget(host, live);
    return removed;
  } catch (error) {
    if (!watched) handBack(host, live);
    throw error;
  }
};

/** Where the disk is too full even for this, what goes with the VM goes first and makes room; a record that stays all the same can be deleted again. */
const dropRecord = async (host: Host, { id }: Vm, options: { keep_disk: boolean }): Promise<Workspace[]> => {
  await endKeeperOf(host, id); // as long as its FIFO is there
  const drop = () => host.step('delete.record', () => host.store.removeVm(id, options));
  try {
    return await drop();
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'no_room')) throw error;
    host.log.warn({ err: error, vm: id }, 'no room to remove the record of a VM: its files go first');
    const owned = options.keep_disk ? [] : (await host.store.wsOfVm(id)).filter(ws => ws.owned);
    for (const ws of owned) await host.step('delete.disk', () => host.disks.removeWs(ws.id));
    await host.step('delete.dir', () => removeTree(host.paths.data, vmDir(host.paths, id)));
    return drop();
  }
};
