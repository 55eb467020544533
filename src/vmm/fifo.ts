/** Named pipes. Node cannot make one. */
import { lstat } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { RunError, run } from '../lib/proc.ts';

const isFifo = async (path: string): Promise<boolean | undefined> => {
  const stat = await lstat(path).catch(() => undefined);
  return stat?.isFIFO();
};

const missing = async (paths: readonly string[]): Promise<string[]> => {
  const absent: string[] = [];
  for (const path of paths) {
    const there = await isFifo(path);
    if (there === undefined) absent.push(path);
    else if (!there) throw new Fault('host', `Cannot use ${path}: it is not a named pipe.`, { hint: `rm ${path}` });
  }
  return absent;
};

/** Makes FIFOs, or finds those made before. Anything else under their names is refused. All at once: each call costs a process. */
export const ensureFifos = async (paths: readonly string[]): Promise<void> => {
  const absent = await missing(paths);
  if (absent.length === 0) return;
  try {
    await run(['mkfifo', '-m', '600', ...absent], { timeout_ms: 10_000 });
  } catch (error) {
    // somebody else may have made them meanwhile
    if (!(error instanceof RunError) || (await missing(paths)).length > 0) throw error;
  }
};
