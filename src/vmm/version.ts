/** What version a VMM says it is. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { RunError, run } from '../lib/proc.ts';

const VERSION_MS = 20_000;

/** False: there is none. Asked at each start, where to spawn it in vain would cost milliseconds. execvp(3). */
const isThere = (program: string, { PATH = '/bin:/usr/bin' }: NodeJS.ProcessEnv): boolean =>
  program.includes('/') ? existsSync(program) : PATH.split(':').some(dir => existsSync(join(dir, program)));

/** The first group of `pattern` in what `program --version` prints, or why there is none. `name` is for people. */
export const versionOf = async (
  name: string,
  program: string,
  env: NodeJS.ProcessEnv,
  pattern: RegExp,
): Promise<{ version: string } | { why: string }> => {
  if (!isThere(program, env)) return { why: `there is no ${name}: ${program} is not installed or not in PATH` };
  try {
    const { stdout } = await run([program, '--version'], { timeout_ms: VERSION_MS, env });
    const version = pattern.exec(stdout)?.[1];
    return version === undefined ? { why: `${program} does not say its version` } : { version };
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    return { why: `there is no ${name}: ${error.message.replace(/\.$/, '')}` };
  }
};
