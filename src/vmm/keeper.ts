/**
 * What a VMM says last when no daemon is there: the content of a FIFO goes with the last process that has it open, so a process of a few pages beside
 * the VMM has its FIFOs open too. It waits for a line on a FIFO of its own, and ends with it.
 *
 * INVARIANTS: one a VMM that a daemon holds or held; it is told to end when the end of the VM is on record. It is nobody's right to a VM: without one
 * what was said last is lost, and that is all.
 */
import { spawn } from 'node:child_process';
import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import type { Log } from '../lib/log.ts';
import type { ProcRef } from '../lib/proc.ts';
import { processesBelow } from './find.ts';
import { CONSOLE_FIFO, KEEPER_FIFO, METRICS_FIFO } from './run_dir.ts';

const { O_NOFOLLOW, O_NONBLOCK, O_RDWR, O_WRONLY } = constants;
/** In the arguments of each: its name. The ID of its VM comes next. */
const NAME = 'nexus-keeper';

/** Throws if it is no FIFO, or if nobody reads what is opened for writing (ENXIO). Never waits: the directory is the VMM's own. */
const openFifo = (path: string, flags: number): number => {
  const fd = openSync(path, flags | O_NONBLOCK | O_NOFOLLOW);
  if (fstatSync(fd).isFIFO()) return fd;
  closeSync(fd);
  throw new Error(`${path} is no named pipe`);
};

/** For a program that waits for what comes: opened again, for the flag is of the opening. */
const openToWait = (path: string): number => {
  const fd = openFifo(path, O_RDWR);
  try {
    return openSync(`/proc/self/fd/${fd}`, O_RDWR);
  } finally {
    closeSync(fd);
  }
};

/** The end of its keeper's FIFO, if it has a keeper. */
const reach = (dir: string): number | undefined => {
  try {
    return openFifo(join(dir, KEEPER_FIFO), O_WRONLY);
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'ENOENT' || code === 'ENXIO') return undefined;
    throw error;
  }
};

/** Starts one for the VMM that works, or will work, in `dir`. */
export const startKeeper = (id: string, dir: string, log: Log): void => {
  const fds: number[] = [];
  try {
    for (const name of [KEEPER_FIFO, CONSOLE_FIFO, METRICS_FIFO]) fds.push(openToWait(join(dir, name)));
    const [own, ...kept] = fds;
    const child = spawn('sh', ['-c', 'read -r _', NAME, id], {
      cwd: dir,
      env: { PATH: process.env.PATH },
      detached: true,
      stdio: [own, 'ignore', 'ignore', ...kept],
    });
    child.on('error', error => log.warn({ err: error, vm: id }, 'nobody keeps what a VMM says last'));
    child.unref();
  } finally {
    for (const fd of fds) closeSync(fd);
  }
};

/** True if there is one. Throws where that cannot be known. */
export const hasKeeper = (dir: string): boolean => {
  const fd = reach(dir);
  if (fd !== undefined) closeSync(fd);
  return fd !== undefined;
};

/** Tells it to end, if there is one; does not wait for it. Throws where it cannot be reached. */
export const endKeeper = (dir: string): void => {
  const fd = reach(dir);
  if (fd === undefined) return;
  try {
    writeSync(fd, '\n');
  } catch {
    // it has just ended
  } finally {
    closeSync(fd);
  }
};

/** Those of all VMs below `run_root`, whatever has become of their FIFOs and directories. */
export const findKeepers = async (run_root: string): Promise<{ vm_id: string; proc: ProcRef }[]> =>
  (await processesBelow(run_root)).flatMap(({ proc, argv }) =>
    argv[3] === NAME ? [{ vm_id: argv[4] ?? '', proc }] : [],
  );
