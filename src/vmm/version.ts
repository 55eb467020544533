/** What version a VMM says it is. */
import { RunError, run } from '../lib/proc.ts';

const VERSION_MS = 20_000;

/** The first group of `pattern` in what `program --version` prints, or why there is none. `name` is for people. */
export const versionOf = async (
  name: string,
  program: string,
  env: NodeJS.ProcessEnv,
  pattern: RegExp,
): Promise<{ version: string } | { why: string }> => {
  try {
    const { stdout } = await run([program, '--version'], { timeout_ms: VERSION_MS, env });
    const version = pattern.exec(stdout)?.[1];
    return version === undefined ? { why: `${program} does not say its version` } : { version };
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    return { why: `there is no ${name}: ${error.message.replace(/\.$/, '')}` };
  }
};
