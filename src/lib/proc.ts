/** Child processes and /proc. The only place that spawns; always an argument array, never a shell. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Readable, Writable } from 'node:stream';

export interface RunOptions {
  cwd?: string;
  /** Replaces the environment; default: the caller's own. */
  env?: NodeJS.ProcessEnv;
  /** Bytes for the standard input, or pieces of them, each of which is done with when the next is asked for; default: /dev/null. */
  input?: Uint8Array | AsyncIterable<Uint8Array>;
  /** Aborting kills the child's process group. */
  signal?: AbortSignal;
  /** Deadline, ms. Default 60 000. */
  timeout_ms?: number;
  /** From SIGTERM to SIGKILL, ms, when it is late or aborted. Default 2000. */
  grace_ms?: number;
  /** Bytes of output that are kept, each channel, the last ones. Default 1 MiB. */
  max_output?: number;
  /** Called with each line of stdout and stderr as it comes. */
  onLine?: (line: string, channel: 'stdout' | 'stderr') => void;
}

export interface RunResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export class RunError extends Error {
  readonly argv: readonly string[];
  readonly result: RunResult | undefined;
  /** errno name where the program could not be started: ENOENT, EACCES. */
  readonly errno: string | undefined;
  constructor(argv: readonly string[], message: string, result?: RunResult, errno?: string) {
    super(message);
    this.name = 'RunError';
    this.argv = argv;
    this.result = result;
    this.errno = errno;
  }
}

const collect = (stream: Readable | null, max: number, onLine?: (line: string) => void): (() => string) => {
  let kept: Buffer[] = [];
  let size = 0;
  let partial = '';
  stream?.on('data', (chunk: Buffer) => {
    kept.push(chunk);
    size += chunk.length;
    if (size > 2 * max) {
      const all = Buffer.concat(kept);
      kept = [all.subarray(all.length - max)];
      size = max;
    }
    if (onLine === undefined) return;
    const lines = (partial + chunk.toString('utf8')).split(/\r?\n|\r/);
    partial = (lines.pop() ?? '').slice(-65_536);
    for (const line of lines) onLine(line);
  });
  stream?.on('end', () => {
    if (partial !== '') onLine?.(partial);
  });
  return () => {
    const all = Buffer.concat(kept);
    return all.subarray(Math.max(0, all.length - max)).toString('utf8');
  };
};

/** Ends a process group: SIGTERM, then SIGKILL after `grace_ms`. Never signals pid 0 or 1. */
export const killGroup = (child: ChildProcess, grace_ms = 2000): void => {
  const { pid } = child;
  if (pid === undefined || pid <= 1 || child.exitCode !== null || child.signalCode !== null) return;
  const send = (signal: NodeJS.Signals) => {
    try {
      process.kill(-pid, signal);
    } catch {
      // the group is gone
    }
  };
  send('SIGTERM');
  const timer = setTimeout(() => send('SIGKILL'), grace_ms);
  child.once('exit', () => clearTimeout(timer));
};

/** Writes the pieces one after the other and closes. Throws what they throw; a child that closes its input early is no error: its exit code tells. */
const pump = async (from: NonNullable<RunOptions['input']>, to: Writable): Promise<void> => {
  to.on('error', () => {});
  for await (const piece of from instanceof Uint8Array ? [from] : from)
    if (await new Promise(resolve => to.write(piece, resolve))) return;
  to.end();
};

/** Runs a program to its end in a process group of its own. Rejects only if it could not be started or was aborted. */
export const runAny = (argv: readonly string[], options: RunOptions = {}): Promise<RunResult> =>
  new Promise((resolve, reject) => {
    const [program, ...args] = argv;
    if (program === undefined) throw new RunError(argv, 'no program given');
    options.signal?.throwIfAborted();
    const child = spawn(program, args, {
      detached: true,
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      ...(options.env === undefined ? {} : { env: options.env }),
    });
    const max = options.max_output ?? 1024 * 1024;
    const stdout = collect(child.stdout, max, options.onLine && (l => options.onLine?.(l, 'stdout')));
    const stderr = collect(child.stderr, max, options.onLine && (l => options.onLine?.(l, 'stderr')));
    let why: unknown;
    const end = (reason: unknown) => {
      why ??= reason;
      killGroup(child, options.grace_ms);
    };
    const ms = options.timeout_ms ?? 60_000;
    const timer = setTimeout(() => end(new RunError(argv, `${program} took longer than ${ms} ms`)), ms);
    const onAbort = () => end(options.signal?.reason);
    options.signal?.addEventListener('abort', onAbort, { once: true });
    const fed = child.stdin && pump(options.input ?? new Uint8Array(), child.stdin).catch(end);
    const done = () => {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    };
    child.once('error', error => {
      done();
      const errno = (error as NodeJS.ErrnoException).code;
      const what = errno === 'ENOENT' ? 'is not installed or not in PATH' : `cannot be started: ${error.message}`;
      reject(new RunError(argv, `${program} ${what}`, undefined, errno));
    });
    child.once('close', async (code, signal) => {
      await fed;
      done();
      if (why !== undefined) reject(why);
      else resolve({ code, signal, stdout: stdout(), stderr: stderr() });
    });
  });

/** As `runAny`, and rejects with a `RunError` (its message has the last words of stderr) on any exit code but 0. */
export const run = async (argv: readonly string[], options: RunOptions = {}): Promise<RunResult> => {
  const result = await runAny(argv, options);
  if (result.code === 0) return result;
  throw failed(argv, result);
};

const failed = (argv: readonly string[], result: RunResult): RunError => {
  const how = result.signal === null ? `exit code ${result.code}` : `signal ${result.signal}`;
  const words = (result.stderr || result.stdout).trim().split('\n').slice(-3).join(' / ').slice(-500);
  return new RunError(argv, `${argv[0]} failed with ${how}${words === '' ? '' : `: ${words}`}`, result);
};

/** Sends a stream through a program and gives what it writes. Throws unless the program takes all and ends with 0. */
export async function* through(
  argv: readonly string[],
  input: Readable,
  options: Pick<RunOptions, 'env' | 'signal' | 'timeout_ms'> = {},
): AsyncGenerator<Buffer> {
  const [program = '', ...args] = argv;
  options.signal?.throwIfAborted();
  const child = spawn(program, args, { detached: true, stdio: 'pipe', ...(options.env && { env: options.env }) });
  const stderr = collect(child.stderr, 65_536);
  const ended = new Promise<RunResult>((resolve, reject) => {
    child.once('error', error =>
      reject(
        new RunError(
          argv,
          `${program} cannot be started: ${error.message}`,
          undefined,
          'code' in error ? String(error.code) : undefined,
        ),
      ),
    );
    child.once('close', (code, signal) => resolve({ code, signal, stdout: '', stderr: stderr() }));
  });
  ended.catch(() => {}); // awaited below
  let why: unknown;
  const end = (reason: unknown) => {
    why ??= reason;
    killGroup(child);
  };
  const ms = options.timeout_ms ?? 60_000;
  const timer = setTimeout(() => end(new RunError(argv, `${program} took longer than ${ms} ms`)), ms);
  const onAbort = () => end(options.signal?.reason);
  options.signal?.addEventListener('abort', onAbort, { once: true });
  input.on('error', end);
  child.stdin.on('error', () => {}); // the program may stop reading early; its exit code tells
  input.pipe(child.stdin);
  try {
    for await (const chunk of child.stdout) yield chunk;
    const result = await ended;
    if (why !== undefined) throw why;
    if (result.code !== 0) throw failed(argv, result);
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener('abort', onAbort);
    input.destroy();
    killGroup(child, 500);
    await ended.catch(() => {});
  }
}

/** A process, told apart from a later one with the same pid. */
export interface ProcRef {
  pid: number;
  /** Field 22 of /proc/<pid>/stat: start time in clock ticks since boot. */
  start_ticks: number;
  /** /proc/sys/kernel/random/boot_id of the boot in which it started. */
  boot_id: string;
}

let bootIdText: string | undefined;
/** The boot ID of this host, constant in the life of a process. */
export const bootId = (): string => {
  bootIdText ??= readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return bootIdText;
};

export interface ProcStat {
  pid: number;
  /** R, S, D, Z (dead, not reaped), T (stopped), … */
  state: string;
  ppid: number;
  start_ticks: number;
}

/** /proc/<pid>/stat, proc_pid_stat(5). Read at once: it waits for nothing, and a thread for it costs more. */
const statNow = (pid: number): ProcStat | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { pid, state: fields[0] ?? '?', ppid: Number(fields[1]), start_ticks: Number(fields[19]) };
  } catch {
    return undefined;
  }
};

/** What /proc says of a process; undefined: there is none. */
export const procStat = async (pid: number): Promise<ProcStat | undefined> => statNow(pid);

const isAliveNow = (ref: ProcRef): boolean => {
  if (ref.boot_id !== bootId()) return false;
  const stat = statNow(ref.pid);
  return stat !== undefined && stat.start_ticks === ref.start_ticks && stat.state !== 'Z' && stat.state !== 'X';
};

/** True while this very process lives (same pid, start time and boot; a zombie counts as dead). */
export const isAlive = async (ref: ProcRef): Promise<boolean> => isAliveNow(ref);

/** Names a running process; undefined if it is gone. */
export const procRef = async (pid: number): Promise<ProcRef | undefined> => {
  const stat = await procStat(pid);
  return stat && { pid, start_ticks: stat.start_ticks, boot_id: bootId() };
};

/**
 * Signals this very process and no later one with its pid. False if it is gone.
 *
 * Node has no pidfd_send_signal(2), so this is two system calls, and nothing of ours runs between them: it is as tight as it can be. A stranger
 * would be hit if the process ended, was reaped and had its pid given away within these microseconds. A child of ours cannot: it is reaped
 * by the event loop, which does not turn here. As to others, the kernel gives pids in turn, and would have to go around all of them
 * (pid_max) first.
 */
export const signalProc = async (ref: ProcRef, signal: NodeJS.Signals): Promise<boolean> => {
  if (ref.pid <= 1 || !isAliveNow(ref)) return false;
  try {
    return process.kill(ref.pid, signal);
  } catch {
    return false;
  }
};

/** A program that may outlive the one that started it. */
export interface Launched {
  readonly ref: ProcRef;
  /** How it ended; pending while it runs. */
  readonly ended: Promise<string>;
  /** Lets the event loop end while it runs. */
  unref(): void;
}

/** Starts a program in a session of its own, with no input and its output in a new file. */
export const launch = async (argv: readonly string[], log_file: string): Promise<Launched> => {
  const [program = '', ...args] = argv;
  const log = await open(log_file, 'w', 0o600);
  try {
    const child = spawn(program, args, { detached: true, stdio: ['ignore', log.fd, log.fd] });
    const ended = new Promise<string>(resolve => {
      child.once('error', error => resolve(`it cannot be started: ${error.message}`));
      child.once('exit', (code, signal) => resolve(signal === null ? `exit code ${code}` : `signal ${signal}`));
    });
    const ref = child.pid === undefined ? undefined : await procRef(child.pid);
    if (ref === undefined) throw new Error(`${program}: ${await ended}`);
    return { ref, ended, unref: () => child.unref() };
  } finally {
    await log.close();
  }
};
