/** Programs that may outlive the one that starts them. */
import { spawn } from 'node:child_process';
import { open } from 'node:fs/promises';
import { type ProcRef, procRef } from './proc.ts';

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
