/** A job, followed to its end. */
import { Fault } from '../api/fault.ts';
import type { Job, JobMessage } from '../api/job.ts';
import type { CallOptions } from './calls.ts';
import type { Nexus } from './nexus.ts';

/** Follows a job to its end and gives it, however it ended. Aborting stops following; the job goes on. */
export const followJob = async (
  nexus: Nexus,
  job: string,
  onMessage: (message: JobMessage) => void = () => {},
  options: CallOptions = {},
): Promise<Job> => {
  for await (const message of nexus.job.log({ job }, options)) {
    onMessage(message);
    if (message.type === 'end') return message.job;
  }
  return await nexus.job.get({ job }, options);
};

/** Throws what a job failed with; gives the job if it succeeded. */
export const checkJob = (job: Job): Job => {
  if (job.state === 'succeeded') return job;
  if (job.error !== null) throw new Fault(job.error.code, job.error.detail, { hint: job.error.hint });
  const code = job.state === 'canceled' ? 'canceled' : 'internal';
  throw new Fault(code, `Job ${job.id} (${job.kind} ${job.subject}) was ${job.state}.`);
};
