/** Keepers of what VMMs say last (vmm/keeper.ts): one beside each VMM that is held, none beside a VM that does not live. */
import { VM_LIVE } from '../api/vm_state.ts';
import { poll } from '../lib/deadline.ts';
import { signalProc } from '../lib/proc.ts';
import { endKeeper, findKeepers, hasKeeper, startKeeper } from '../vmm/keeper.ts';
import type { Host } from './host.ts';
import { runDir } from './paths.ts';

/** For one that was told to end. */
const END_MS = 1000;
const LOOK_MS = 5;

/** For the VMM of a start. What is there is of an earlier one, told to end a moment ago or never: it ends first. */
export const newKeeper = (host: Host, id: string): Promise<void> => {
  const dir = runDir(host.paths, id);
  const gone = async () => {
    if (!hasKeeper(dir)) return true;
    endKeeper(dir);
    return undefined;
  };
  return orWarn(host, id, 'nobody keeps what a VMM says last', async () => {
    await host.step('start.keeper', async () => {
      await poll('the end of an earlier keeper', END_MS, gone, { every_ms: LOOK_MS });
      startKeeper(id, dir, host.log);
    });
  });
};

/** For a VMM that is taken over. */
export const keeperFor = (host: Host, id: string): Promise<void> => {
  const dir = runDir(host.paths, id);
  return orWarn(host, id, 'nobody keeps what a VMM says last', async () => {
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
