/**
 * Long operations: a record in the store, progress, a log, a cancel, an end. A job belongs to the daemon, never to the client
 * that asked for it.
 *
 * INVARIANTS: every job that was queued ends in exactly one of JOB_ENDED; its owner (`ended`) is told before. Two equal requests share a
 * job; of others at most one of a kind and subject runs, unless they go side by side. The log of a running job keeps its newest LINES lines
 * in memory and everything up to LOG_BYTES on disk. An end that cannot be stored is told from memory until it is.
 */
import { createWriteStream, type WriteStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { finished } from 'node:stream/promises';
import { Fault } from '../api/fault.ts';
import { type Job, type JobMessage, type JobProgress, type JobState, newJob } from '../api/job.ts';
import { withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import type { Slots } from '../lib/slots.ts';
import type { Step } from '../lib/step.ts';
import { plain } from '../lib/text.ts';
import type { JobStore } from '../store/store.ts';
import type { Events } from './events.ts';
import { newId } from './ids.ts';
import { insist } from './insist.ts';
import { jobLogPath, LINES, type LiveLog, liveJobLog, readJobLog, sweepJobLogs } from './job_log.ts';

const LOG_BYTES = 4 * 1024 * 1024;
const KEEP_JOBS = 200;
/** Progress is published at most this often. */
const PROGRESS_MS = 100;
/** How long jobs have to end when the daemon stops. */
const CLOSE_MS = 10_000;

export interface JobRequest {
  /** The operation that asks. */
  kind: string;
  subject: string;
  /** All of what was asked for. */
  input: unknown;
  /** Requests for the same subject that differ otherwise do not disturb each other. */
  side_by_side?: boolean;
  /** Of the job; default: a new one. */
  id?: string;
  /** It waits here for its turn, `queued`. */
  queue?: Slots;
  /** Told of its end before that is stored. */
  ended?: (job: Job) => Promise<void>;
}

export interface JobContext {
  readonly job_id: string;
  readonly signal: AbortSignal;
  progress(progress: JobProgress): void;
  log(line: string): void;
}

interface Running extends LiveLog {
  readonly what: JobRequest;
  /** What was asked for, as text. */
  readonly request: string;
  readonly abort: AbortController;
  readonly done: Promise<Job>;
  /** Where it is to wait: its place in the queue. */
  readonly turn: Promise<Disposable> | undefined;
}

interface Options {
  readonly store: JobStore;
  /** Where the logs lie. */
  readonly dir: string;
  readonly events: Events;
  readonly log: Log;
  readonly step: Step;
  readonly closing: AbortSignal;
}

export class JobRunner {
  readonly #running = new Map<string, Running>();
  readonly #own: Options;
  /** Jobs whose end is not on disk yet. */
  readonly #unstored = new Map<string, Job>();

  constructor(options: Options) {
    this.#own = options;
  }

  /**
   * Starts `work`, or joins the running job of the same kind and subject; `busy` if that was asked for otherwise. `work` gives the ID of
   * what it made.
   */
  async start(what: JobRequest, work: (ctx: JobContext) => Promise<string>): Promise<Job> {
    const { kind, subject, queue } = what;
    const request = JSON.stringify(what.input);
    for (const { job, request: other } of this.#running.values()) {
      if (job.kind !== kind || job.subject !== subject) continue;
      if (request === other) return job;
      if (what.side_by_side === true) continue;
      const why = `job ${job.id} does it already, with other settings`;
      throw new Fault('busy', `Cannot do ${kind} of '${subject}': ${why}.`, { hint: `nexusctl job log ${job.id}` });
    }
    const waits = queue !== undefined && queue.free < 1;
    const job = newJob(what.id ?? newId('job'), kind, subject, waits ? 'queued' : 'running', Date.now());
    const abort = new AbortController();
    const done = Promise.withResolvers<Job>();
    const running: Running = {
      what,
      request,
      abort,
      done: done.promise,
      turn: queue?.take(1, abort.signal),
      job,
      lines: [],
      dropped: 0,
      watchers: new Set(),
    };
    this.#running.set(job.id, running);
    try {
      await this.#own.step('job.insert', () => this.#own.store.insertJob(job));
    } catch (error) {
      this.#running.delete(job.id);
      abort.abort(error);
      void running.turn?.then(turn => turn[Symbol.dispose]()).catch(() => {});
      throw error;
    }
    this.#own.events.emit('job.state', job.id, { state: job.state, kind, subject });
    void this.#run(running, work).then(done.resolve);
    return job;
  }

  /** The job as it is now, its progress included. */
  async get(id: string): Promise<Job> {
    const job = this.#running.get(id)?.job ?? this.#unstored.get(id) ?? (await this.#own.store.findJob(id));
    if (job === undefined) throw new Fault('not_found', `There is no job '${id}'.`, { hint: 'nexusctl job list' });
    return job;
  }

  /** As the store's, with what is known better. */
  async list(filter: { state?: JobState; limit: number }): Promise<Job[]> {
    const { state, limit } = filter;
    const all = await this.#own.store.listJobs(
      this.#unstored.size === 0 ? filter : { limit: limit + this.#unstored.size },
    );
    const now = all.map(job => this.#running.get(job.id)?.job ?? this.#unstored.get(job.id) ?? job);
    return now.filter(job => state === undefined || job.state === state).slice(0, limit);
  }

  /** Its end, if it runs; at once where it has ended. */
  async ended(id: string): Promise<Job> {
    return this.#running.get(id)?.done ?? this.get(id);
  }

  async cancel(id: string): Promise<Job> {
    const running = this.#running.get(id);
    if (running === undefined) {
      const job = await this.get(id);
      throw new Fault('bad_state', `Cannot cancel job '${id}': it is ${job.state}.`);
    }
    running.abort.abort(new Fault('canceled', `Job '${id}' was canceled.`));
    return running.done;
  }

  /** Ends all jobs: the daemon stops. */
  async close(): Promise<void> {
    const all = [...this.#running.values()];
    for (const r of all) r.abort.abort(new Fault('canceled', 'The daemon stopped.'));
    await withDeadline('the end of all jobs', CLOSE_MS, Promise.allSettled(all.map(r => r.done))).catch(error =>
      this.#own.log.error({ err: error, jobs: [...this.#running.keys()] }, 'jobs do not end; they are left'),
    );
  }

  /** Removes logs of jobs that nobody knows; gives their paths. */
  async sweep(): Promise<string[]> {
    const known = await this.#own.store.listJobs({ limit: Number.MAX_SAFE_INTEGER });
    return sweepJobLogs(
      this.#own.dir,
      known.map(job => job.id),
    );
  }

  /** The log from its beginning; with `follow` to its end, which is the last message. */
  async *log(id: string, signal: AbortSignal, follow = true): AsyncGenerator<JobMessage> {
    const running = this.#running.get(id);
    if (running !== undefined) yield* liveJobLog(running, signal, follow);
    else {
      const job = await this.get(id);
      yield* readJobLog(this.#own.dir, id);
      yield { type: 'end', job };
    }
  }

  async #run(running: Running, work: (ctx: JobContext) => Promise<string>): Promise<Job> {
    const { id } = running.job;
    const file = createWriteStream(jobLogPath(this.#own.dir, id), { mode: 0o600 });
    file.on('error', error => this.#own.log.warn({ err: error, job: id }, 'cannot write the log of a job'));
    let patch: Partial<Job>;
    try {
      const result_id = await this.#inTurn(running, () => work(this.#context(running, file)));
      patch = { state: 'succeeded', result_id };
    } catch (error) {
      patch = this.#failure(running, error);
    }
    file.end();
    await finished(file).catch(() => {});
    const end: Partial<Job> = { ...patch, progress: running.job.progress, ended_at_ms: Date.now() };
    const job: Job = { ...running.job, ...end };
    this.#unstored.set(id, job);
    await running.what
      .ended?.(job)
      .catch(error => this.#own.log.error({ err: error, job: id }, 'the end of a job was not told'));
    await this.#own
      .step('job.end', () => this.#own.store.updateJob(id, end))
      .then(
        () => this.#unstored.delete(id),
        error => this.#storeLater(id, end, error),
      );
    this.#publish(running, job);
    void this.#prune();
    return job;
  }

  /** Waits for its turn, if it has to, and is `running` then. */
  async #inTurn<T>(running: Running, work: () => Promise<T>): Promise<T> {
    using _turn = await running.turn;
    const { id, kind, subject, state } = running.job;
    if (state === 'queued') {
      const begun = { state: 'running' as const, started_at_ms: Date.now() };
      await this.#own.step('job.begin', () => this.#own.store.updateJob(id, begun));
      running.job = { ...running.job, ...begun };
      this.#own.events.emit('job.state', id, { state: 'running', kind, subject });
    }
    return await work();
  }

  #storeLater(id: string, end: Partial<Job>, first: unknown): void {
    this.#own.log.error({ err: first, job: id }, 'the end of a job cannot be stored');
    insist(this.#own, 'the end of a job', () => this.#own.store.updateJob(id, end)).then(
      () => this.#unstored.delete(id),
      error => this.#own.log.error({ err: error, job: id }, 'the end of a job is not stored'),
    );
  }

  #publish(running: Running, job: Job): void {
    running.job = job;
    this.#running.delete(job.id);
    this.#own.events.emit('job.state', job.id, { state: job.state, kind: job.kind, subject: job.subject });
    for (const push of running.watchers) push({ type: 'end', job });
  }

  #failure(running: Running, error: unknown): Partial<Job> {
    const canceled = running.abort.signal.aborted;
    const cause = canceled ? running.abort.signal.reason : error;
    if (cause instanceof Fault) {
      const { code, message, hint } = cause;
      return {
        state: canceled ? 'canceled' : 'failed',
        error: { code, detail: message, ...(hint === undefined ? {} : { hint }) },
      };
    }
    this.#own.log.error({ err: error, job: running.job.id }, 'a job failed in a way that was not foreseen');
    const detail = `${running.job.kind} failed: ${error instanceof Error ? error.message : String(error)}`;
    return { state: 'failed', error: { code: 'internal', detail } };
  }

  #context(running: Running, file: WriteStream): JobContext {
    let written = 0;
    let published = 0;
    return {
      job_id: running.job.id,
      signal: running.abort.signal,
      progress: progress => {
        const changed = running.job.progress?.stage !== progress.stage;
        running.job = { ...running.job, progress };
        const now = performance.now();
        if (!changed && now - published < PROGRESS_MS) return;
        published = now;
        for (const push of running.watchers) push({ type: 'progress', progress });
      },
      log: text => {
        const message = { type: 'log' as const, at_ms: Date.now(), line: plain(text).slice(0, 4096) };
        running.lines.push(message);
        if (running.lines.length > LINES) running.dropped += running.lines.shift()?.line.length ?? 0;
        const row = `${message.at_ms} ${message.line}\n`;
        written += row.length;
        if (written <= LOG_BYTES) file.write(row);
        for (const push of running.watchers) push(message);
      },
    };
  }

  async #prune(): Promise<void> {
    try {
      for (const id of await this.#own.store.pruneJobs(KEEP_JOBS))
        await rm(jobLogPath(this.#own.dir, id), { force: true });
    } catch (error) {
      this.#own.log.warn({ err: error }, 'cannot prune old jobs');
    }
  }
}
