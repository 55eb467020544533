/** Follows a job on the command line. Ctrl-C stops following; the job goes on. */
import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import { checkJob, followJob } from '../client/job.ts';
import type { Nexus } from '../client/nexus.ts';
import { formatMs } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { makeBar } from './bar.ts';
import { type Cli, note, out } from './cli.ts';
import { json } from './show.ts';
import { onSignals } from './signals.ts';

/** Log lines that are shown when a job fails. */
const TAIL = 10;

/** Follows a job with its progress on standard error, its last log lines if it fails. */
export const watchJob = async (
  nexus: Nexus,
  id: string,
  signal: AbortSignal | undefined,
  indent = '',
): Promise<Job> => {
  const bar = makeBar(indent);
  const tail: string[] = [];
  try {
    const job = await followJob(
      nexus,
      id,
      message => {
        if (message.type === 'progress') bar.show(message.progress);
        if (message.type === 'log') tail.push(message.line);
        if (tail.length > TAIL) tail.shift();
      },
      { signal },
    );
    bar.clear();
    if (job.state === 'failed') for (const line of tail) note(`${indent}  ${plain(line)}\n`);
    return job;
  } finally {
    bar.clear();
  }
};

/** Follows the job that an operation began, or with `detach` only says its ID. Its result's ID goes to standard output. */
export const jobStarted = async (cli: Cli, job: Job, detach: boolean): Promise<void> => {
  if (detach) return out(cli.json ? json(job) : `${job.id}\n`);
  const away = new Fault('canceled', `Stopped following; job ${job.id} goes on.`, {
    hint: `nexusctl job cancel ${job.id} ends it, nexusctl job log ${job.id} follows it again`,
  });
  const abort = new AbortController();
  using _ = onSignals(['SIGINT'], () => abort.abort(away));
  const ended = cli.json
    ? await followJob(cli.nexus, job.id, undefined, { signal: abort.signal })
    : await watchJob(cli.nexus, job.id, abort.signal);
  if (cli.json) out(json(ended));
  checkJob(ended);
  if (cli.json) return;
  const took = (ended.ended_at_ms ?? 0) - (ended.started_at_ms ?? ended.created_at_ms);
  note(`Done in ${formatMs(Math.max(0, took))}.\n`);
  if (ended.result_id !== null) out(`${ended.result_id}\n`);
};
