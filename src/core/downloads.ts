/**
 * Downloads that several jobs wait for: one for each thing, whoever asks for it and by whatever name.
 *
 * INVARIANTS: at most one download of a key runs; it runs as long as somebody waits for it. Who is canceled leaves; the last who leaves
 * ends it, and goes only when it has been undone, or with what was made if it was too late for that.
 */
import type { JobProgress } from '../api/job.ts';
import { raced } from '../lib/deadline.ts';
import type { JobContext } from './jobs.ts';

interface Running {
  readonly members: Set<JobContext>;
  readonly abort: AbortController;
  readonly done: Promise<string>;
  progress: JobProgress | undefined;
}

export class Downloads {
  readonly #running = new Map<string, Running>();

  /** Does `work`, or joins who does it; gives the ID of what was made. */
  async run(key: string, job: JobContext, work: (shared: JobContext) => Promise<string>): Promise<string> {
    // it is a member before this goes on: else the last one could leave in between, and end it
    const running = await this.#join(key, job, work);
    try {
      return await raced(running.done, job.signal);
    } catch (error) {
      running.members.delete(job);
      if (running.members.size > 0) throw error;
      running.abort.abort(error);
      return await running.done.catch(() => {
        throw error;
      });
    } finally {
      running.members.delete(job);
    }
  }

  async #join(key: string, job: JobContext, work: (shared: JobContext) => Promise<string>): Promise<Running> {
    for (;;) {
      const running = this.#running.get(key);
      if (running === undefined) return this.#begin(key, job, work);
      if (!running.abort.signal.aborted) {
        job.log('another job downloads it already; waiting for that');
        if (running.progress !== undefined) job.progress(running.progress);
        running.members.add(job);
        return running;
      }
      await raced(
        running.done.then(() => {}).catch(() => {}),
        job.signal,
      ); // it is being undone
    }
  }

  #begin(key: string, job: JobContext, work: (shared: JobContext) => Promise<string>): Running {
    const members = new Set<JobContext>([job]);
    const abort = new AbortController();
    const shared: JobContext = {
      job_id: job.job_id,
      signal: abort.signal,
      progress: progress => {
        running.progress = progress;
        for (const member of members) member.progress(progress);
      },
      log: line => {
        for (const member of members) member.log(line);
      },
    };
    // not before it is in the map
    const done = Promise.resolve()
      .then(() => work(shared))
      .finally(() => this.#running.delete(key));
    done.catch(() => {});
    const running: Running = { members, abort, done, progress: undefined };
    this.#running.set(key, running);
    return running;
  }
}
