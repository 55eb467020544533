/** The log of a job that has ended, as it lies on disk: the time in ms, a space, the line. */
import { createReadStream } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { JobMessage } from '../api/job.ts';

type LogLine = Extract<JobMessage, { type: 'log' }>;

export const jobLogPath = (dir: string, id: string): string => join(dir, `${id}.log`);

/** The lines that are kept; none if the log is gone. */
export async function* readJobLog(dir: string, id: string): AsyncGenerator<LogLine> {
  const file = createReadStream(jobLogPath(dir, id));
  file.on('error', () => {}); // an old log may have been pruned
  const lines = createInterface({ input: file, crlfDelay: Number.POSITIVE_INFINITY });
  try {
    for await (const line of lines) {
      const at = Number(line.slice(0, line.indexOf(' ')));
      if (Number.isSafeInteger(at)) yield { type: 'log', at_ms: at, line: line.slice(line.indexOf(' ') + 1) };
    }
  } catch {
    // no log
  } finally {
    file.destroy();
  }
}

/** Removes the logs of all jobs but these; gives their paths. */
export const sweepJobLogs = async (dir: string, known: readonly string[]): Promise<string[]> => {
  const keep = new Set(known.map(id => jobLogPath(dir, id)));
  const gone = (await readdir(dir)).map(name => join(dir, name)).filter(path => !keep.has(path));
  for (const path of gone) await rm(path, { force: true });
  return gone;
};
