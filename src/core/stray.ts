/** VMM processes that nobody holds. */
import { poll } from '../lib/deadline.ts';
import { isAlive, type ProcRef, signalProc } from '../lib/proc.ts';
import type { Host } from './host.ts';

const END_MS = 10_000;

/** Ends a process and waits until it is gone. */
export const endProcess = async (proc: ProcRef): Promise<void> => {
  await signalProc(proc, 'SIGKILL');
  await poll(`the end of process ${proc.pid}`, END_MS, async () => ((await isAlive(proc)) ? undefined : true));
};

/** Ends every VMM of a VM that this daemon does not hold. The caller has the VM's lock. */
export const endStrays = async (host: Host, id: string): Promise<void> => {
  for (const { vm_id, proc } of await host.vmm.find(host.paths.vms)) {
    if (vm_id !== id) continue;
    host.log.warn({ vm: id, pid: proc.pid }, 'ending a VMM that nobody holds');
    await endProcess(proc);
  }
};
