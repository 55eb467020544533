/** What a process has used. */
import { readFile } from 'node:fs/promises';
import { cgroupUsage } from './cgroup.ts';
import { isAlive, type ProcRef } from './proc.ts';

/** USER_HZ, which is 100 wherever Linux runs on x86_64 and aarch64. */
const TICK_MS = 10;

export interface ProcUsage {
  /** Of all its threads, those that ended too. */
  cpu_ms: number;
  /** Resident. */
  memory_bytes: number;
}

/** Of a process, or of the group that it has to itself, where the kernel accounts for that; undefined if this very process is gone. */
export const usageOfProc = async (ref: ProcRef, cgroup: string | null): Promise<ProcUsage | undefined> => {
  const [seen, counted] = await Promise.all([procUsage(ref), cgroup === null ? undefined : cgroupUsage(cgroup)]);
  if (seen === undefined || counted === undefined) return seen;
  return { cpu_ms: counted.cpu_ms, memory_bytes: counted.memory_bytes ?? seen.memory_bytes };
};

/** proc_pid_stat(5), proc_pid_status(5). */
const procUsage = async (ref: ProcRef): Promise<ProcUsage | undefined> => {
  try {
    const [stat, status] = await Promise.all([
      readFile(`/proc/${ref.pid}/stat`, 'utf8'),
      readFile(`/proc/${ref.pid}/status`, 'utf8'),
    ]);
    if (!(await isAlive(ref))) return undefined;
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? '0';
    return { cpu_ms: (Number(fields[11]) + Number(fields[12])) * TICK_MS, memory_bytes: Number(kib) * 1024 };
  } catch {
    return undefined;
  }
};
