/**
 * Keepers of what VMMs say last (vmm/keeper.ts): one beside each VMM that is held, none beside a VM that does not live.
 *
 * INVARIANTS: a keeper is started only as long as its VMM is held and has not been let go, looked at in the same turn; only then is it told to
 * end. So none comes after that. One that a killed daemon could not start or end is the next one's.
 */
import { VM_LIVE } from '../api/vm_state.ts';
import { pause, poll } from '../lib/deadline.ts';
import { signalProc } from '../lib/proc.ts';
import { endKeeper, findKeepers, hasKeeper, startKeeper } from '../vmm/keeper.ts';
import type { Host, Live } from './host.ts';
import { runDir } from './paths.ts';

/**
 * From a VM that runs to its keeper. A spawn costs the daemon milliseconds, and its place is not where many guests come up at once; a VM that is
 * gone by then needs none.
 */
const AFTER_MS = 2000;
/** For one that was told to end. */
const END_MS = 1000;
const LOOK_MS = 5;

const UNKEPT = 'nobody keeps what a VMM says last';

/** For the VMM of a start, in a while. What is there then is of an earlier one, told to end or never: it ends first. */
export const keepSoon = (host: Host, { vm_id, gone }: Live): void => {
  const dir = runDir(host.paths, vm_id);
  const signal = AbortSignal.any([gone.signal, host.closing]);
  const free = () => {
    if (!hasKeeper(dir)) return true;
    endKeeper(dir);
    return undefined;
  };
  const keep = async () => {
    await poll('the end of an earlier keeper', END_MS, free, { every_ms: LOOK_MS, signal });
    if (!signal.aborted) startKeeper(vm_id, dir, host.log);
  };
  const soon = pause(AFTER_MS, signal).then(() => host.step('start.keeper', keep));
  soon.catch(err => {
    if (!signal.aborted) host.log.warn({ err, vm: vm_id }, UNKEPT);
  });
};

/** For a VMM that is taken over, or left to the next daemon. */
export const keeperFor = (host: Host, id: string): Promise<void> => {
  const dir = runDir(host.paths, id);
  return orWarn(host, id, UNKEPT, async () => {
    if (!hasKeeper(dir)) await host.step('start.keeper', async () => startKeeper(id, dir, host.log));
  });
};

/** Tells the keeper of a VM to end. One that this does not reach is ended by the next daemon. */
export const endKeeperOf = (host: Host, id: string): Promise<void> =>
  orWarn(host, id, 'a keeper cannot be told to end', () =>
    host.step('end.keeper', async () => endKeeper(runDir(host.paths, id))),
  );

/** Ends the keepers of VMs that do not live: a killed daemon may have left them, and their FIFOs may be gone. */
export const endKeepers = async (host: Host): Promise<void> => {
  const vms = await host.store.listVms();
  const live = new Set(vms.filter(vm => VM_LIVE.includes(vm.state)).map(vm => vm.id));
  for (const { vm_id, proc } of await findKeepers(host.paths.vms)) {
    if (live.has(vm_id)) continue;
    await orWarn(host, vm_id, 'a keeper cannot be ended', () =>
      host.step('reconcile.keeper', async () => void (await signalProc(proc, 'SIGKILL'))),
    );
  }
};

/** Without a keeper what is said last may be lost: no reason for anything else to fail. */
const orWarn = (host: Host, vm: string, what: string, work: () => Promise<void>): Promise<void> =>
  work().catch(err => host.log.warn({ err, vm }, what));
