/** Named pipes. Node cannot make one. */
import { lstat } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { RunError, run } from '../lib/proc.ts';

const isFifo = async (path: string): Promise<boolean | undefined> => {
  const stat = await lstat(path).catch(() => undefined);
  return stat?.isFIFO();
};

/** Makes a FIFO, or finds one made before. Anything else under that name is refused. */
export const ensureFifo = async (path: string): Promise<void> => {
  const there = await isFifo(path);
  if (there === true) return;
  if (there === undefined) {
    try {
      await run(['mkfifo', '-m', '600', path], { timeout_ms: 10_000 });
      return;
    } catch (error) {
      // somebody else may have made it meanwhile
      if (!(error instanceof RunError) || (await isFifo(path)) !== true) throw error;
      return;
    }
  }
  throw new Fault('host', `Cannot use ${path} as console: it is not a named pipe.`, { hint: `rm ${path}` });
};
