/**
 * What the VMMs use, asked of them and of the kernel.
 *
 * INVARIANTS: a VMM is asked once at a time, whoever wants to know; one that is silent is waited for ASK_MS at most, and then the
 * kernel alone says what it knows.
 */
import type { VmUsage } from '../api/vm_inspect.ts';
import { withDeadline } from '../lib/deadline.ts';
import { usageOfProc } from '../lib/usage.ts';
import type { Host, Live } from './host.ts';

const ASK_MS = 800;

/** Undefined: its process is gone. Never rejects. */
export const usageOf = async (host: Host, { vm_id, machine }: Live): Promise<VmUsage | undefined> => {
  const asked = host.usages.run(`${vm_id} ${machine.proc.pid}`, () => machine.usage());
  const said = await withDeadline('the answer of the VMM', ASK_MS, asked).catch(() => undefined);
  if (said !== undefined) return said;
  const seen = await usageOfProc(machine.proc, machine.cgroup);
  return seen && { ...seen, disk_read_bytes: null, disk_write_bytes: null };
};
