/**
 * Steps: every effect on the world outside the daemon has a name, so that a test can end the daemon before and after each, or let
 * it fail. In production a step is its work and nothing else.
 */
import { readFileSync, writeSync } from 'node:fs';
import process from 'node:process';

/** Does the work of one named effect. The name is written as a literal where it is called: a test finds all of them. */
export type Step = <T>(name: string, work: () => Promise<T>) => Promise<T>;

export const plainStep: Step = (_name, work) => work();

/**
 * For tests: what `file` says, read anew at each step, happens at the step that it names. `die before:NAME` and `die after:NAME`: SIGKILL to this very
 * process, told on stderr; `fail NAME`: an I/O error instead of the work; `fail full:NAME`: a full disk. An empty file: nothing.
 */
export const faultyStep =
  (file: string): Step =>
  async (name, work) => {
    dieAt(file, `before:${name}`);
    const [verb, what] = wish(file);
    if (verb === 'fail' && what === name) throw ioError('EIO', 'i/o error', name);
    if (verb === 'fail' && what === `full:${name}`) throw ioError('ENOSPC', 'no space left on device', name);
    const value = await work();
    dieAt(file, `after:${name}`);
    return value;
  };

const wish = (file: string): string[] => {
  try {
    return readFileSync(file, 'utf8').trim().split(' ');
  } catch {
    return [];
  }
};

const dieAt = (file: string, where: string): void => {
  const [verb, what] = wish(file);
  if (verb !== 'die' || what !== where) return;
  writeSync(2, `died ${where}\n`);
  process.kill(process.pid, 'SIGKILL');
};

const ioError = (code: string, why: string, name: string): Error =>
  Object.assign(new Error(`${code}: ${why}, ${name} (told to fail)`), { code });
