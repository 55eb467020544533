/** Named pipes. Node cannot make one. */
import { lstatSync } from 'node:fs';
import { Fault } from '../api/fault.ts';
import { RunError, run } from '../lib/proc.ts';

const missing = (paths: readonly string[]): string[] => {
  const absent: string[] = [];
  for (const path of paths) {
    const there = lstatSync(path, { throwIfNoEntry: false })?.isFIFO();
    if (there === undefined) absent.push(path);
    else if (!there) throw new Fault('host', `Cannot use ${path}: it is not a named pipe.`, { hint: `rm ${path}` });
  }
  return absent;
};

/** Makes FIFOs, or finds those made before. Anything else under their names is refused. All at once: each call costs a process. */
export const ensureFifos = async (paths: readonly string[]): Promise<void> => {
  const absent = missing(paths);
  if (absent.length === 0) return;
  try {
    await run(['mkfifo', '-m', '600', ...absent], { timeout_ms: 10_000 });
  } catch (error) {
    // somebody else may have made them meanwhile
    if (!(error instanceof RunError) || missing(paths).length > 0) throw error;
  }
};
