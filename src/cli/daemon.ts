/** A daemon of one's own, in a directory of one's own. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import type { DaemonInfo } from '../api/daemon.ts';
import { Fault } from '../api/fault.ts';
import type { Nexus } from '../client/nexus.ts';
import { Unreachable } from '../client/transport.ts';
import { poll, raced, withDeadline } from '../lib/deadline.ts';
import { type Launched, launch, signalProc } from '../lib/proc.ts';

/** From its start to its first answer: it looks at the accelerator and at the disks. */
const START_MS = 60_000;
/** From SIGTERM to its end: jobs are ended, requests in flight get their answers. */
const STOP_MS = 30_000;
const KILL_MS = 5000;
const LOG_LINES = 8;

export interface PrivateDaemon {
  readonly pid: number;
  readonly log_file: string;
  /** SIGTERM, and SIGKILL if that does not help. */
  stop(): Promise<void>;
  /** Lets it live on without us. */
  leave(): void;
}

/** What answers on the socket, or undefined if nothing does. */
export const answering = async (nexus: Nexus, signal: AbortSignal): Promise<DaemonInfo | undefined> => {
  try {
    return await nexus.daemon.get({}, { signal });
  } catch (error) {
    if (error instanceof Unreachable) return undefined;
    throw error;
  }
};

/** The last words of a daemon that ended: what it said to people, else the end of its log. */
const lastWords = async (log_file: string): Promise<string> => {
  const lines = (await readFile(log_file, 'utf8').catch(() => '')).trim().split('\n');
  const spoken = lines.filter(line => line !== '' && !line.startsWith('{'));
  return (spoken.length > 0 ? spoken : lines).slice(-LOG_LINES).join('\n').slice(-2000);
};

const end = async (daemon: Launched): Promise<void> => {
  if (!(await signalProc(daemon.ref, 'SIGTERM'))) return;
  try {
    await withDeadline('the end of the daemon', STOP_MS, daemon.ended);
  } catch {
    await signalProc(daemon.ref, 'SIGKILL');
    await withDeadline('the end of the daemon', KILL_MS, daemon.ended);
  }
};

/** Starts a daemon on `data_dir`; it may not answer yet. */
export const launchDaemon = async (data_dir: string): Promise<PrivateDaemon & { ended: Promise<string> }> => {
  const log_file = join(data_dir, 'nexusd.log');
  const script = process.argv[1] ?? '';
  const daemon = await launch(
    [process.execPath, ...process.execArgv, script, 'nexusd', '--data-dir', data_dir],
    log_file,
  );
  return {
    pid: daemon.ref.pid,
    log_file,
    ended: daemon.ended,
    stop: () => end(daemon),
    leave: () => daemon.unref(),
  };
};

/** Waits until the daemon answers; a daemon that ends first is a fault with its last words. */
export const waitForDaemon = async (
  nexus: Nexus,
  daemon: { ended: Promise<string>; log_file: string },
  signal: AbortSignal,
): Promise<DaemonInfo> => {
  const over = new AbortController();
  const ready = poll('the start of the daemon', START_MS, () => answering(nexus, over.signal), {
    every_ms: 50,
    signal: over.signal,
  });
  ready.catch(() => {});
  try {
    const first = await raced(Promise.race([ready, daemon.ended]), signal);
    if (typeof first !== 'string') return first;
    throw new Fault('host', `Cannot start the daemon: it ended with ${first}.\n${await lastWords(daemon.log_file)}`, {
      hint: `its log is ${daemon.log_file}`,
    });
  } finally {
    over.abort(new Fault('canceled', 'The wait is over.'));
  }
};
