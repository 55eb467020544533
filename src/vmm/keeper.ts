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
import { CONSOLE_FIFO, KEEPER_FIFO, METRICS_FIFO } from './run_dir.ts';

const { O_NOFOLLOW, O_NONBLOCK, O_RDWR, O_WRONLY } = constants;

/** Undefined: it is no FIFO, or nobody reads it. */
const openFifo = (path: string, flags: number): number | undefined => {
  let fd: number;
  try {
    fd = openSync(path, flags | O_NOFOLLOW);
  } catch {
    return undefined;
  }
  if (fstatSync(fd).isFIFO()) return fd;
  closeSync(fd);
  return undefined;
};

/** Starts one for the VMM that works, or will work, in `dir`. */
export const startKeeper = (id: string, dir: string, log: Log): void => {
  const fds = [KEEPER_FIFO, CONSOLE_FIFO, METRICS_FIFO].map(name => openFifo(join(dir, name), O_RDWR));
  try {
    const [own, ...kept] = fds.filter(fd => fd !== undefined);
    if (own === undefined || fds.includes(undefined)) throw new Error(`the FIFOs in ${dir} cannot be opened`);
    const child = spawn('sh', ['-c', 'read -r _', 'nexus-keeper', id], {
      cwd: dir,
      env: { PATH: process.env.PATH },
      detached: true,
      stdio: [own, 'ignore', 'ignore', ...kept],
    });
    child.on('error', error => log.warn({ err: error, vm: id }, 'nobody keeps what a VMM says last'));
    child.unref();
  } catch (error) {
    log.warn({ err: error, vm: id }, 'nobody keeps what a VMM says last');
  } finally {
    for (const fd of fds) if (fd !== undefined) closeSync(fd);
  }
};

/** True if there is one. */
export const hasKeeper = (dir: string): boolean => {
  const fd = openFifo(join(dir, KEEPER_FIFO), O_WRONLY | O_NONBLOCK);
  if (fd !== undefined) closeSync(fd);
  return fd !== undefined;
};

/** Tells it to end, if there is one; does not wait for it. */
export const endKeeper = (dir: string): void => {
  const fd = openFifo(join(dir, KEEPER_FIFO), O_WRONLY | O_NONBLOCK);
  if (fd === undefined) return;
  try {
    writeSync(fd, '\n');
  } catch {
    // it has just ended
  } finally {
    closeSync(fd);
  }
};
