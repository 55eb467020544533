/** The stories of stop and delete: docs/architecture.md, "A VM's life". */
import { Fault } from '../api/fault.ts';
import type { LastExit, Vm } from '../api/vm.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import type { Workspace } from '../api/ws.ts';
import { withDeadline } from '../lib/deadline.ts';
import { removeTree } from '../lib/files.ts';
import type { Held } from '../lib/lock.ts';
import type { MachineEnd } from '../vmm/machine.ts';
import { admit, busy, needVm, publicVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { cannotWrite } from './insist.ts';
import { describeEnd, forget, handBack, letGo } from './live.ts';
import { moveVm } from './move.ts';
import { vmDir } from './paths.ts';
import { endStrays, undying } from './stray.ts';

/** How long the operation that holds the lock has to unwind. */
const PREEMPT_MS = 10_000;
/** How long a stop waits for the watcher that is storing the end of the VM. */
const WATCHER_MS = 5000;
/** From SIGTERM to SIGKILL. */
const TERM_MS = 2000;
/** From SIGKILL to the end of the process. */
const KILL_MS = 10_000;
/** What runs in the guest gets this much of the time to end by itself. */
const GRACE_SHARE = 0.4;

export interface StopOptions {
  force: boolean;
  timeout_ms: number;
  actor: string;
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
  // of a start that has not come to `starting` yet, the state says nothing
  if (host.locks.holder(id) !== 'vm.start') admit(asked, 'stop');
  // two that ask a guest politely share the answer; force waits for nobody
  const patience = options.force ? PREEMPT_MS : options.timeout_ms + PREEMPT_MS;
  await using held = await takeOver(host, asked, {
    verb: 'stop',
    ms: patience,
    ...(options.force ? {} : { spare: 'vm.stop' }),
  });
  const vm = await needVm(host, id);
  if (!VM_LIVE.includes(vm.state)) return publicVm(vm); // the start was aborted, or another stop was faster
  const live = host.live.get(id);
  if (live === undefined) return stopUnheld(host, vm, options.actor);
  if (live.end_owner === 'watcher') {
    // it ended by itself a moment ago; the watcher is writing that down
    await within(live.end_stored.promise, WATCHER_MS);
    return publicVm(await needVm(host, id));
  }
  live.end_owner = 'stop';
  try {
    return await stopHeld(host, vm, live, options, held.signal);
  } catch (error) {
    handBack(host, live);
    throw error;
  }
};

const stopHeld = async (host: Host, vm: Vm, live: Live, options: StopOptions, signal: AbortSignal): Promise<Vm> => {
  if (vm.state !== 'stopping') {
    const why = options.force ? 'stop by force was asked for' : 'stop was asked for';
    await stopping(host, vm, why, options.actor);
  }
  const { end, how } = await endMachine(host, live, options, signal);
  live.stopped_how = how;
  const exit = await describeEnd(live, end);
  await host.step('stop.letgo', () => letGo(host, live));
  const stopped = await stored(host, vm.id, { ...exit, reason: how }, options.actor);
  forget(host, live);
  return stopped;
};

/** A full disk is no reason to let a VM run that shall not: it may be what fills it. */
const stopping = async (host: Host, vm: Vm, why: string, actor: string): Promise<void> => {
  try {
    await host.step('stop.stopping', () => moveVm(host, vm.id, { to: 'stopping', why, actor }));
  } catch (error) {
    if (!cannotWrite(error)) throw error;
    host.log.error({ err: error, vm: vm.id }, 'cannot store that a VM is being stopped');
  }
};

const stored = async (host: Host, id: string, exit: LastExit, actor: string): Promise<Vm> => {
  const stopped = await host.step('stop.record', () =>
    moveVm(host, id, {
      to: 'stopped',
      why: exit.reason,
      actor,
      patch: { pid: null, run: null, guest: null, stopped_at_ms: exit.at_ms, last_exit: exit },
    }),
  );
  return publicVm(stopped);
};

/** The record says that it lives, but nobody holds its VMM: the record could not be written, or the VMM not be adopted. */
const stopUnheld = async (host: Host, vm: Vm, actor: string): Promise<Vm> => {
  await endStrays(host, vm.id);
  const reason = 'Nobody held its VMM; what was left of it was ended.';
  return stored(host, vm.id, { at_ms: Date.now(), reason, exit_code: null, signal: null, console_tail: [] }, actor);
};

/** Ends the VMM: the guest is asked, then SIGTERM, then SIGKILL. Returns when the process is gone; an abort ends the waiting alone. */
const endMachine = async (
  host: Host,
  live: Live,
  options: { force: boolean; timeout_ms: number },
  signal: AbortSignal,
): Promise<{ end: MachineEnd; how: string }> => {
  const { machine } = live;
  if (!options.force) {
    const asked = await askGuest(host, live, options.timeout_ms, signal);
    signal.throwIfAborted();
    if (asked !== undefined) return { end: asked, how: endedHow(live, asked) };
    await host.step('stop.term', () => machine.signal('SIGTERM'));
    const termed = await within(machine.ended, TERM_MS, signal);
    signal.throwIfAborted();
    if (termed !== undefined)
      return { end: termed, how: 'The guest did not shut down in time; the VMM was ended by SIGTERM.' };
  }
  await host.step('stop.kill', () => machine.signal('SIGKILL'));
  const killed = await within(machine.ended, KILL_MS);
  if (killed === undefined) {
    throw undying(machine.proc);
  }
  return { end: killed, how: options.force ? 'It was stopped by force.' : 'The VMM did not end; SIGKILL was needed.' };
};

/** A VMM that ended while its guest was asked need not have ended by the guest. */
const endedHow = (live: Live, end: MachineEnd): string =>
  live.ending !== undefined || end.guest_reset
    ? 'The guest shut down.'
    : `The VMM ended while the guest was asked to shut down (${end.signal ?? `exit code ${end.exit_code ?? 'unknown'}`}).`;

/** The end of the VMM if the guest brings it about within the time, all of it. */
const askGuest = async (
  host: Host,
  live: Live,
  timeout_ms: number,
  signal: AbortSignal,
): Promise<MachineEnd | undefined> => {
  const until = performance.now() + timeout_ms;
  const deadline = AbortSignal.timeout(timeout_ms);
  try {
    const grace_ms = Math.max(100, Math.round(timeout_ms * GRACE_SHARE));
    await host.step('stop.power', () =>
      live.guest.power('poweroff', grace_ms, AbortSignal.any([deadline, signal, ended(live)])),
    );
  } catch (error) {
    if (signal.aborted) return undefined;
    host.log.warn({ err: error, vm: live.vm_id }, 'the guest does not take the order to shut down');
    return within(live.machine.ended, 200, signal);
  }
  return within(live.machine.ended, Math.max(1, until - performance.now()), signal);
};

const ended = (live: Live): AbortSignal => {
  const abort = new AbortController();
  void live.machine.ended.then(() => abort.abort(new Fault('vmm', 'The VMM has ended.')));
  return abort.signal;
};

/** The promise's value, or undefined after `ms` or when aborted. */
const within = <T>(promise: Promise<T>, ms: number, signal?: AbortSignal): Promise<T | undefined> =>
  withDeadline('the end of the VMM', ms, promise, signal).catch(() => undefined);

/** Deletes a VM in any state: its VMM first, then the record, then what lies on disk. */
export const deleteVm = async (host: Host, ref: string, options: { keep_disk: boolean }): Promise<void> => {
  const asked = await needVm(host, ref);
  const { id } = asked;
  await using held = await takeOver(host, asked, { verb: 'delete', ms: PREEMPT_MS });
  const vm = await needVm(host, id); // a second delete may have been faster
  const removed = await removeRecord(host, vm, options, held.signal);
  host.events.emit('vm.deleted', id, {});
  // from here on it is gone for everybody: what cannot be removed now, the next start of a daemon sweeps
  for (const work of [
    ...removed.map(ws => () => host.step('delete.disk', () => host.disks.removeWs(ws.id))),
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
    if (VM_LIVE.includes(vm.state)) await endStrays(host, vm.id);
    return host.step('delete.record', () => host.store.removeVm(vm.id, options));
  }
  const watched = live.end_owner === 'watcher'; // it goes on watching: it finds no record, or stores the end
  live.end_owner ??= 'stop';
  try {
    await host.step('delete.kill', () => endMachine(host, live, { force: true, timeout_ms: 0 }, signal));
    await host.step('delete.letgo', () => letGo(host, live));
    const removed = await host.step('delete.record', () => host.store.removeVm(vm.id, options));
    forget(host, live);
    return removed;
  } catch (error) {
    if (!watched) handBack(host, live);
    throw error;
  }
};
