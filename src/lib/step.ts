/**
 * Steps: every effect on the world outside the daemon has a name, so that a test can end the daemon before and after each, or let
 * it fail. In production a step is its work and nothing else.
 */
import { readFileSync, writeFileSync, writeSync } from 'node:fs';
import process from 'node:process';

/** Does the work of one named effect. The name is written as a literal where it is called: a test finds all of them. */
export type Step = <T>(name: string, work: () => Promise<T>) => Promise<T>;

export const plainStep: Step = (_name, work) => work();

/**
 * For tests: what `file` says, read anew at each step, happens once, at the step that it names. `die before:NAME` and `die after:NAME`: SIGKILL to
 * this very process, told on stderr; `fail NAME`: an I/O error instead of the work; `full NAME`: as on a full disk. An empty file: nothing.
 */
export const faultyStep =
  (file: string): Step =>
  async (name, work) => {
    const wish = readFileSync(file, 'utf8').trim();
    if (wish === `die before:${name}`) die(wish);
    for (const [word, code, text] of FAILURES) {
      if (wish !== `${word} ${name}`) continue;
      writeFileSync(file, '');
      throw Object.assign(new Error(`${code}: ${text} at ${name}`), { code });
    }
    const value = await work();
    if (wish === `die after:${name}`) die(wish);
    return value;
  };

/** The words of `faultyStep`; codes and texts are libuv's. */
const FAILURES = [
  ['fail', 'EIO', 'i/o error'],
  ['full', 'ENOSPC', 'no space left on device'],
] as const;

const die = (wish: string): void => {
  writeSync(2, `told to ${wish}\n`);
  process.kill(process.pid, 'SIGKILL');
};
