/** The stories of stop and delete: design section 4. */
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';
import { withDeadline } from '../lib/deadline.ts';
import { removeTree } from '../lib/files.ts';
import type { Held } from '../lib/lock.ts';
import type { MachineEnd } from '../vmm/machine.ts';
import { admit, busy, needVm, publicVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { describeEnd, letGo } from './live.ts';
import { vmDir } from './paths.ts';

/** How long the operation that holds the lock has to unwind. */
const PREEMPT_MS = 10_000;
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

/** Takes the VM's lock for `verb`, aborting the operation that holds it. */
const takeOver = async (host: Host, id: string, verb: 'stop' | 'delete'): Promise<Held> => {
  const vm = await needVm(host, id);
  const holder = host.locks.holder(id) ?? '';
  const reason = new Fault('canceled', `The operation on VM '${vm.name}' was ended by vm.${verb}.`);
  const taken = host.locks.preempt(id, `vm.${verb}`, reason);
  try {
    return await withDeadline('unwinding', PREEMPT_MS, taken);
  } catch {
    taken.then(held => held[Symbol.asyncDispose]());
    throw busy(vm, verb, `${holder} does not let go; it`);
  }
};

export const stopVm = async (host: Host, ref: string, options: StopOptions): Promise<Vm> => {
  const { id, state } = await needVm(host, ref);
  await using _held = await takeOver(host, id, 'stop');
  const vm = await needVm(host, id);
  // a start that this stop has aborted left the VM stopped: that is what was asked for
  if (state === 'starting' && vm.state === 'stopped') return publicVm(vm);
  admit(vm, 'stop');
  const live = host.live.get(id);
  if (live === undefined) throw new Fault('internal', `VM '${vm.name}' is ${vm.state}, but nobody holds its VMM.`);
  live.end_owner ??= 'stop';
  if (live.end_owner === 'watcher') {
    // it ended by itself a moment ago; the watcher is writing that down
    await watcherDone(host, id);
    return publicVm(await needVm(host, id));
  }
  if (vm.state !== 'stopping') {
    const why = options.force ? 'stop by force was asked for' : 'stop was asked for';
    await host.store.transitionVm(id, { to: 'stopping', why, actor: options.actor });
    host.events.emit('vm.state', id, { state: 'stopping' });
  }
  const { end, how } = await endMachine(host, live, options);
  const exit = await describeEnd(live, end);
  await letGo(host, live);
  const stopped = await host.store.transitionVm(id, {
    to: 'stopped',
    why: how,
    actor: options.actor,
    patch: {
      pid: null,
      run: null,
      guest: null,
      stopped_at_ms: exit.at_ms,
      last_exit: { ...exit, reason: how },
    },
  });
  host.events.emit('vm.state', id, { state: 'stopped', why: how });
  return publicVm(stopped);
};

const watcherDone = async (host: Host, id: string): Promise<void> => {
  const end = performance.now() + 5000;
  while (host.live.has(id) && performance.now() < end) await new Promise(resolve => setTimeout(resolve, 10));
};

/** Ends the VMM: the guest is asked, then SIGTERM, then SIGKILL. Returns when the process is gone. */
const endMachine = async (
  host: Host,
  live: Live,
  options: { force: boolean; timeout_ms: number },
): Promise<{ end: MachineEnd; how: string }> => {
  const { machine } = live;
  if (!options.force) {
    const asked = await askGuest(host, live, options.timeout_ms);
    if (asked !== undefined) return { end: asked, how: 'The guest shut down.' };
    await machine.signal('SIGTERM');
    const termed = await within(machine.ended, TERM_MS);
    if (termed !== undefined)
      return { end: termed, how: 'The guest did not shut down in time; the VMM was ended by SIGTERM.' };
  }
  await machine.signal('SIGKILL');
  const killed = await within(machine.ended, KILL_MS);
  if (killed === undefined) {
    throw new Fault('vmm', `The VMM (process ${machine.proc.pid}) does not end after SIGKILL.`, {
      hint: 'look for a process in state D: a disk that does not answer',
    });
  }
  return { end: killed, how: options.force ? 'It was stopped by force.' : 'The VMM did not end; SIGKILL was needed.' };
};

const askGuest = async (host: Host, live: Live, timeout_ms: number): Promise<MachineEnd | undefined> => {
  const deadline = AbortSignal.timeout(timeout_ms);
  try {
    const grace_ms = Math.max(100, Math.round(timeout_ms * GRACE_SHARE));
    await live.guest.power('poweroff', grace_ms, AbortSignal.any([deadline, ended(live)]));
  } catch (error) {
    host.log.warn({ err: error, vm: live.vm_id }, 'the guest does not take the order to shut down');
    return within(live.machine.ended, 200);
  }
  return within(live.machine.ended, timeout_ms);
};

const ended = (live: Live): AbortSignal => {
  const abort = new AbortController();
  void live.machine.ended.then(() => abort.abort(new Fault('vmm', 'The VMM has ended.')));
  return abort.signal;
};

const within = <T>(promise: Promise<T>, ms: number): Promise<T | undefined> =>
  withDeadline('the end of the VMM', ms, promise).catch(() => undefined);

/** Deletes a VM in any state: its VMM first, then the record, then what lies on disk. */
export const deleteVm = async (host: Host, ref: string, options: { keep_disk: boolean }): Promise<void> => {
  const { id } = await needVm(host, ref);
  await using _held = await takeOver(host, id, 'delete');
  await needVm(host, id); // a second delete may have been faster
  const live = host.live.get(id);
  if (live !== undefined) {
    live.end_owner = 'stop';
    await endMachine(host, live, { force: true, timeout_ms: 0 });
    await letGo(host, live);
  }
  const removed = await host.store.removeVm(id, options);
  host.events.emit('vm.deleted', id, {});
  for (const ws of removed) await host.disks.removeWs(ws.id);
  await removeTree(host.paths.data, vmDir(host.paths, id));
};
