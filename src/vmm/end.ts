/** The end of a VMM's process: seen, told, and cleaned up after. */
import type { ChildProcess } from 'node:child_process';
import type { VmmKind } from '../api/vm.ts';
import { removeCgroup } from '../lib/cgroup.ts';
import { sleep } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { isAlive, type ProcRef } from '../lib/proc.ts';
import type { MachineEnd } from './machine.ts';
import { Metrics } from './metrics.ts';
import { COUNTED, METRICS_FIFO, RunDir } from './run_dir.ts';

/** An adopted process leaves no exit event: /proc is asked this often. */
const POLL_MS = 100;
const LOG_CHECK_MS = 10_000;

export type Exit = Pick<MachineEnd, 'exit_code' | 'signal' | 'known'>;

export interface Watched {
  proc: ProcRef;
  /** Only where we are the parent. */
  child: ChildProcess | undefined;
  dir: RunDir;
  cgroup: string | null;
  log: Log;
  /** Aborted when the machine is let go. */
  released: AbortSignal;
  /** The process is gone: takes what it said last. */
  lastSigns(exit: Exit): Promise<Pick<MachineEnd, 'guest_reset' | 'guest_panicked'>>;
  /** Lets go of every socket, timer and descriptor. */
  close(): void;
}

const exitOf = (child: ChildProcess): Promise<Exit> =>
  new Promise(resolve => {
    const tell = (exit_code: number | null, signal: string | null) => resolve({ exit_code, signal, known: true });
    if (child.exitCode !== null || child.signalCode !== null) tell(child.exitCode, child.signalCode);
    else child.once('exit', tell);
  });

const goneOf = async ({ proc, released }: Watched): Promise<Exit> => {
  while (!released.aborted && (await isAlive(proc))) {
    await sleep(POLL_MS, undefined, { signal: released }).catch(() => {});
  }
  return { exit_code: null, signal: null, known: false };
};

/** Settles when the process is gone, its last signs are read, and its sockets and its group are removed. Never after a release. */
export const watchEnd = async (watched: Watched): Promise<MachineEnd> => {
  const { child, dir, cgroup, log, released } = watched;
  void boundLogs(watched);
  const exit = child === undefined ? await goneOf(watched) : await exitOf(child);
  if (released.aborted) return new Promise(() => {});
  const signs = await watched.lastSigns(exit);
  watched.close();
  const last_words = await dir.lastWords();
  await dir.removeSockets().catch(error => log.warn({ err: error }, 'sockets could not be removed'));
  dir[Symbol.dispose]();
  if (cgroup !== null) await removeCgroup(cgroup);
  return { ...exit, ...signs, last_words };
};

/** What a VMM has left that ended while nobody watched. */
export const signsAfter = async (path: string, kind: VmmKind | null): Promise<MachineEnd> => {
  using dir = new RunDir(path);
  const guest_reset = kind === 'firecracker' && (await countedReset(dir));
  const last_words = await dir.lastWords();
  return { exit_code: null, signal: null, known: false, guest_reset, guest_panicked: false, last_words };
};

const countedReset = async (dir: RunDir): Promise<boolean> => {
  const load = () => dir.kept(COUNTED);
  const metrics = new Metrics({ fd: dir.openReader(METRICS_FIFO), load, keep: text => dir.keep(COUNTED, text) });
  try {
    await metrics.loaded;
    metrics.drain();
    await metrics.kept; // it is out of the FIFO now: the next daemon is to know it too
    return (metrics.counters?.resets ?? 0) > 0;
  } finally {
    metrics.close();
  }
};

const boundLogs = async ({ dir, released }: Watched): Promise<void> => {
  for (;;) {
    await sleep(LOG_CHECK_MS, undefined, { signal: released, ref: false }).catch(() => {});
    if (released.aborted) return;
    await dir.boundLogs().catch(() => {});
  }
};
