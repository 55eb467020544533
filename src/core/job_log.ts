/** The log of a job: of one that runs from memory, of one that has ended as it lies on disk (the time in ms, a space, the line). */
import { createReadStream } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Job, JobMessage } from '../api/job.ts';

type LogLine = Extract<JobMessage, { type: 'log' }>;

/** How many of the newest lines of a running job are kept in memory. */
export const LINES = 2000;

/** What is known of a running job. */
export interface LiveLog {
  job: Job;
  lines: LogLine[];
  /** Bytes of older lines. */
  dropped: number;
  readonly watchers: Set<(message: JobMessage) => void>;
}

/** What a running job has said; with `follow` what it will say, and its end. */
export async function* liveJobLog(running: LiveLog, signal: AbortSignal, follow: boolean): AsyncGenerator<JobMessage> {
  const queue: JobMessage[] = [...running.lines];
  if (running.dropped > 0) queue.unshift({ type: 'gap', bytes: running.dropped });
  if (running.job.progress !== null) queue.push({ type: 'progress', progress: running.job.progress });
  if (!follow) {
    yield* queue;
    return;
  }
  let wake: (() => void) | undefined;
  const push = (message: JobMessage) => {
    if (queue.length < LINES * 2 || message.type === 'end') queue.push(message);
    wake?.();
  };
  const onAbort = () => wake?.();
  running.watchers.add(push);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    while (!signal.aborted) {
      const next = queue.shift();
      if (next === undefined) {
        await new Promise<void>(resolve => {
          wake = resolve;
        });
        continue;
      }
      yield next;
      if (next.type === 'end') return;
    }
  } finally {
    running.watchers.delete(push);
    signal.removeEventListener('abort', onAbort);
  }
}

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
