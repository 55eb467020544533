/** Processes that nobody holds: VMMs, and what a killed daemon's jobs had started. */
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';
import { cgroupNamed, removeCgroup } from '../lib/cgroup.ts';
import { poll } from '../lib/deadline.ts';
import { procsWithEnv } from '../lib/marked.ts';
import { isAlive, type ProcRef, signalProc } from '../lib/proc.ts';
import type { Host } from './host.ts';
import { endKeeperOf } from './keepers.ts';
import type { Paths } from './paths.ts';

/** In the environment of a daemon, and so of all that its jobs start. VMMs get an environment of their own, and live on. */
const OWNER = 'NEXUS_OWNER';

const END_MS = 10_000;
/** From SIGTERM to SIGKILL for programs of a job. */
const TERM_MS = 3000;
/** What ends may just have started something else. */
const ROUNDS = 5;

/** Ends a process and waits until it is gone. */
export const endProcess = async (proc: ProcRef): Promise<void> => {
  await signalProc(proc, 'SIGKILL');
  const gone = async () => ((await isAlive(proc)) ? undefined : true);
  await poll('its end', END_MS, gone).catch(() => {
    throw undying(proc);
  });
};

export const undying = (proc: ProcRef): Fault =>
  new Fault('vmm', `Process ${proc.pid} does not end after SIGKILL.`, {
    hint: 'look for a process in state D: a disk that does not answer',
  });

/** Ends a VMM that nobody holds, with its group. */
export const endVmm = async (id: string, proc: ProcRef): Promise<void> => {
  const group = await cgroupNamed(proc.pid, id);
  await endProcess(proc);
  if (group !== null) await removeCgroup(group);
};

/** Ends every VMM of a VM that this daemon does not hold. The caller has the VM's lock. */
export const endStrays = async (host: Host, id: string): Promise<void> => {
  for (const { vm_id, proc } of await host.vmms.find(host.paths.vms)) {
    if (vm_id !== id) continue;
    host.log.warn({ vm: id, pid: proc.pid }, 'ending a VMM that nobody holds');
    await endVmm(id, proc);
  }
  host.strays.delete(id);
  await endKeeperOf(host, id);
};

/**
 * Before the disks of a VM that does not run are used: a VMM of it that this daemon could not end at its start may write to them. It is
 * ended now, or the disks stay with it. The caller has the VM's lock.
 */
export const needNoStray = async (host: Host, { id, name }: Pick<Vm, 'id' | 'name'>): Promise<void> => {
  if (!host.strays.has(id) || host.live.has(id)) return;
  await endStrays(host, id).catch((cause: unknown) => {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new Fault('in_use', `The disks of VM '${name}' are in use by a VMM that nobody holds: ${why}`, {
      hint: 'look for a process in state D: a disk that does not answer',
      cause,
    });
  });
};

/** What marks a process as work in that data directory: for programs that are not given the daemon's own environment. */
export const workEnv = ({ data }: Paths): Record<string, string> => ({ [OWNER]: data });

/** Marks what this process starts from now on. */
export const markWork = (paths: Paths): void => {
  Object.assign(process.env, workEnv(paths));
};

/** Ends what an earlier daemon on this data directory had started and did not live to end. Some of it tidies up when it is asked to end. */
export const endOldWork = async ({ log, paths }: Pick<Host, 'log' | 'paths'>): Promise<void> => {
  for (let round = 0; round < ROUNDS; round++) {
    const found = await procsWithEnv(OWNER, paths.data);
    if (found.length === 0) return;
    log.warn({ pids: found.map(p => p.pid) }, 'ending what a job of an earlier daemon had started');
    await Promise.allSettled(found.map(endPolitely));
  }
  log.error('programs of an earlier job do not end');
};

const endPolitely = async (proc: ProcRef): Promise<void> => {
  await signalProc(proc, 'SIGTERM');
  const gone = async () => ((await isAlive(proc)) ? undefined : true);
  await poll('its end', TERM_MS, gone).catch(() => endProcess(proc));
};
