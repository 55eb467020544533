/**
 * What a VM is given for its first boot: files, then the script. Its environment is added to each command (`withEnv`).
 *
 * INVARIANTS: at most one is at work for a VM: the one of its `Live`. The record is `pending` until all is done or something has failed for
 * good; a daemon that dies, and a VM that ends, leave it so, and the next boot or daemon goes on. A script that may have run is never run again.
 */
import { Fault } from '../api/fault.ts';
import type { Vm, VmProvision } from '../api/vm.ts';
import { raced } from '../lib/deadline.ts';
import type { Provision, VmPatch, VmRecord } from '../store/store.ts';
import type { Host, Live } from './host.ts';
import { insist } from './insist.ts';
import { writeGiven } from './provision_files.ts';
import { runScript, writeScript } from './provision_script.ts';

/** All files together, while the VM is not paused. */
const FILES_MS = 300_000;
/** What a guest has to say that its script is over, beyond the script's own time. */
const SLACK_MS = 30_000;
const TICK_MS = 1000;

export const PENDING: VmProvision = { state: 'pending', reason: null, error: null, output: [], ended_at_ms: null };

type Failed = Pick<VmProvision, 'reason' | 'output'> & { why: string };

/** True once its guest has answered and has all that it was given. */
export const isReady = (vm: Vm): boolean =>
  vm.state === 'running' && vm.guest === 'ready' && (vm.provision === null || vm.provision.state === 'done');

/** Throws where it will not be ready, for something failed. */
export const refuseFailed = ({ name, provision }: Vm): void => {
  if (provision?.state !== 'failed') return;
  const { error, reason } = provision;
  const detail = error?.detail ?? `VM '${name}' did not get what it was given.`;
  throw new Fault('guest', detail, { hint: error?.hint, reason: reason ?? undefined });
};

/** The same once nobody is at work any more: what is pending then could not be written down. */
export const refuseUngiven = (vm: Vm): void => {
  refuseFailed(vm);
  if (vm.provision?.state !== 'pending') return;
  const hint = `nexusctl vm restart ${vm.name}`;
  throw new Fault('internal', `VM '${vm.name}' runs, but what came of all that it was given is not stored.`, { hint });
};

/** Aborted when the VM was up for so long, pauses left out. */
class Patience implements Disposable {
  readonly #abort = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly signal = this.#abort.signal;

  constructor(live: Live, what: string, ms: number) {
    let left = ms;
    this.#timer = setInterval(() => {
      if (live.held !== undefined) return;
      left -= TICK_MS;
      if (left <= 0) this.#abort.abort(new Fault('timeout', `${what} within ${ms / 1000} s`, { reason: 'timeout' }));
    }, TICK_MS);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/**
 * What a start changes of the record: a root that is neither the one that was provisioned nor a snapshot of it begins anew, and what failed
 * before the script was asked for may be tried again.
 */
export const provisionAtStart = async (host: Host, vm: VmRecord): Promise<VmPatch> => {
  const { provision, provision_run: run, root_ws_id } = vm;
  if (provision === null || run === null) return {};
  const same = root_ws_id === null || run.ws_id === null || (await host.store.lineOf(root_ws_id)).includes(run.ws_id);
  if (!same) return { provision: PENDING, provision_run: { ws_id: root_ws_id, begun: null } };
  return provision.state === 'failed' && run.begun === null ? { provision: PENDING } : {};
};

const lower = (sentence: string): string =>
  `${sentence.slice(0, 1).toLowerCase()}${sentence.slice(1)}`.replace(/\.$/, '');

/** What went wrong, in words that complete "VM 'web' is not provisioned: …". */
const failedBy = (error: unknown, at: 'files' | 'script'): Failed => {
  const fault = error instanceof Fault ? error : undefined;
  const text = error instanceof Error ? error.message : String(error);
  const { reason: finer } = fault ?? {};
  if (finer === 'interrupted' || finer === 'timeout') return { reason: finer, why: text, output: [] };
  const code = finer === undefined ? '' : ` (${finer})`;
  const reason = at === 'files' && finer !== undefined ? 'file' : 'guest';
  return { reason, why: `${lower(text)}${code}`, output: [] };
};

/** Undefined: all is done. Throws where the VM has ended or the daemon stops. */
const give = async (host: Host, live: Live, vm: VmRecord, given: Provision): Promise<Failed | undefined> => {
  const over = AbortSignal.any([live.gone.signal, host.closing]);
  let at: 'files' | 'script' = 'files';
  try {
    if (vm.provision_run?.begun == null) {
      using patience = new Patience(live, 'the guest did not take its files', FILES_MS);
      const signal = AbortSignal.any([over, patience.signal]);
      await raced(writeGiven(host, live.guest.files, vm, given.files, signal), signal);
      if (given.first_boot !== null) await raced(writeScript(live, vm, given.first_boot, signal), signal);
    }
    if (given.first_boot === null) return undefined;
    at = 'script';
    const most = given.first_boot_timeout_ms + SLACK_MS;
    using patience = new Patience(live, 'the guest did not say how its first-boot script ended', most);
    const { reason, how, output } = await raced(runScript(host, live, vm, given, patience.signal), over);
    return reason === null ? undefined : { reason, why: `its first-boot script ${how}`, output };
  } catch (error) {
    over.throwIfAborted();
    host.log.warn({ err: error, vm: vm.id }, 'a VM does not get what it was given');
    return failedBy(error, at);
  }
};

/** The same, for one whose record may not be readable. */
const giveStored = async (host: Host, live: Live, vm: VmRecord, over: AbortSignal): Promise<Failed | undefined> => {
  try {
    const given = await host.store.findProvision(vm.id);
    if (given === undefined) throw new Error('there is no record of what the VM was given');
    return await give(host, live, vm, given);
  } catch (error) {
    over.throwIfAborted();
    host.log.error({ err: error, vm: vm.id }, 'cannot read what a VM was given');
    return { reason: 'guest', why: 'the daemon cannot read what that is', output: [] };
  }
};

/** How many of the last lines are in the sentence; the record has more. */
const SHOWN_LINES = 3;

const outcome = (vm: VmRecord, failed: Failed | undefined): VmProvision => {
  const ended_at_ms = Date.now();
  if (failed === undefined) return { ...PENDING, state: 'done', ended_at_ms };
  const { reason, why, output } = failed;
  const last = output.length === 0 ? '' : ` Its last lines: ${output.slice(-SHOWN_LINES).join(' | ')}`;
  const detail = `VM '${vm.name}' runs, but did not get all that it was given: ${why}.${last}`;
  const hint = `nexusctl vm inspect ${vm.name}; nexusctl exec ${vm.name} -- … to look around`;
  return { state: 'failed', reason, error: { at_ms: ended_at_ms, code: 'guest', detail, hint }, output, ended_at_ms };
};

/** Gives it what is still to be given, once its guest has answered. Never rejects: what failed is in the record. */
export const provision = async (host: Host, live: Live): Promise<void> => {
  const { vm_id } = live;
  const over = AbortSignal.any([live.gone.signal, host.closing]);
  try {
    await raced(live.stored.promise, over);
    const vm = await host.store.findVm(vm_id);
    if (vm?.provision?.state !== 'pending') return;
    const told = outcome(vm, await giveStored(host, live, vm, over));
    const patient = { log: host.log.child({ vm: vm_id }), closing: host.closing };
    const store = () => host.step('provision.record', () => host.store.patchVm(vm_id, { provision: told }));
    await insist(patient, 'what came of a first boot', store);
    const { state, reason } = told;
    host.events.emit('vm.provision', vm_id, { state, reason });
    host.log[state === 'done' ? 'info' : 'warn']({ vm: vm_id, state, reason }, 'a first boot is over');
  } catch (error) {
    if (!over.aborted) host.log.error({ err: error, vm: vm_id }, 'cannot tell what came of a first boot');
  }
};

/** What the VM was given, beneath what a command itself is given. */
export const withEnv = (live: Live, env: Readonly<Record<string, string>>): Record<string, string> => ({
  ...live.env,
  ...env,
});
