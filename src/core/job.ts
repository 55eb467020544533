import { Fault } from '../api/fault.ts';
import { withDeadline } from '../lib/deadline.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';

export const jobHandlers = (host: Host): HandlersOf<'job'> => ({
  'job.list': (_ctx, { state, limit }) => host.jobs.list({ limit, ...(state === undefined ? {} : { state }) }),
  'job.get': (_ctx, { job }) => host.jobs.get(job),
  'job.wait': async (_ctx, { job, timeout_ms }) => {
    await host.jobs.get(job);
    return withDeadline('the job', timeout_ms, host.jobs.ended(job)).catch(error => {
      if (error instanceof Fault) throw error;
      throw new Fault('timeout', `Job '${job}' has not ended within ${timeout_ms} ms; it goes on.`, {
        hint: `nexusctl job log ${job}`,
        cause: error,
      });
    });
  },
  'job.cancel': (_ctx, { job }) => host.jobs.cancel(job),
  'job.log': async (ctx, { job }) => {
    await host.jobs.get(job);
    return host.jobs.log(job, ctx.signal);
  },
});
