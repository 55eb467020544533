/**
 * Long operations: a record in the store, progress, a log, a cancel, an end. A job belongs to the daemon, never to the client
 * that asked for it.
 *
 * INVARIANTS: every job that was queued ends in exactly one of JOB_ENDED. Two requests with the same key share one job. The log of a
 * running job keeps its newest LINES lines in memory and everything up to LOG_BYTES on disk.
 */
import { createReadStream, createWriteStream, type WriteStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { finished } from 'node:stream/promises';
import { Fault } from '../api/fault.ts';
import type { Job, JobMessage, JobProgress } from '../api/job.ts';
import type { Log } from '../lib/log.ts';
import { plain } from '../lib/text.ts';
import type { JobStore } from '../store/store.ts';
import type { Events } from './events.ts';
import { newId } from './ids.ts';

const LINES = 2000;
const LOG_BYTES = 4 * 1024 * 1024;
const KEEP_JOBS = 200;
/** Progress is published at most this often. */
const PROGRESS_MS = 100;

export interface JobContext {
  readonly job_id: string;
  readonly signal: AbortSignal;
  progress(progress: JobProgress): void;
  log(line: string): void;
}

interface Running {
  readonly key: string;
  readonly abort: AbortController;
  readonly done: Promise<Job>;
  job: Job;
  lines: Extract<JobMessage, { type: 'log' }>[];
  dropped: number;
  readonly watchers: Set<(message: JobMessage) => void>;
}

export class JobRunner {
  readonly #running = new Map<string, Running>();
  readonly #store: JobStore;
  readonly #dir: string;
  readonly #events: Events;
  readonly #log: Log;

  constructor(options: { store: JobStore; dir: string; events: Events; log: Log }) {
    this.#store = options.store;
    this.#dir = options.dir;
    this.#events = options.events;
    this.#log = options.log;
  }

  /** Starts `work`, or joins the running job of the same kind and subject. `work` gives the ID of what it made. */
  async start(kind: string, subject: string, work: (ctx: JobContext) => Promise<string>): Promise<Job> {
    const key = `${kind} ${subject}`;
    for (const running of this.#running.values()) if (running.key === key) return running.job;
    const job: Job = {
      id: newId('job'),
      kind,
      subject,
      state: 'running',
      progress: null,
      error: null,
      result_id: null,
      created_at_ms: Date.now(),
      started_at_ms: Date.now(),
      ended_at_ms: null,
    };
    const done = Promise.withResolvers<Job>();
    const running: Running = {
      key,
      abort: new AbortController(),
      done: done.promise,
      job,
      lines: [],
      dropped: 0,
      watchers: new Set(),
    };
    this.#running.set(job.id, running);
    try {
      await this.#store.insertJob(job);
    } catch (error) {
      this.#running.delete(job.id);
      throw error;
    }
    this.#events.emit('job.state', job.id, { state: job.state, kind, subject });
    void this.#run(running, work).then(done.resolve, done.reject);
    done.promise.catch(error => this.#log.error({ err: error, job: job.id }, 'the end of a job could not be stored'));
    return job;
  }

  /** The job as it is now, its progress included. */
  async get(id: string): Promise<Job> {
    const job = this.#running.get(id)?.job ?? (await this.#store.findJob(id));
    if (job === undefined) throw new Fault('not_found', `There is no job '${id}'.`, { hint: 'nexusctl job list' });
    return job;
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
    await Promise.allSettled(all.map(r => r.done));
  }

  async *log(id: string, signal: AbortSignal): AsyncGenerator<JobMessage> {
    const running = this.#running.get(id);
    if (running === undefined) {
      yield* this.#readLog(await this.get(id));
      return;
    }
    const queue: JobMessage[] = [...running.lines];
    if (running.dropped > 0) queue.unshift({ type: 'gap', bytes: running.dropped });
    if (running.job.progress !== null) queue.push({ type: 'progress', progress: running.job.progress });
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

  async *#readLog(job: Job): AsyncGenerator<JobMessage> {
    const file = createReadStream(join(this.#dir, `${job.id}.log`));
    file.on('error', () => {}); // an old log may have been pruned
    const lines = createInterface({ input: file, crlfDelay: Number.POSITIVE_INFINITY });
    try {
      for await (const line of lines) {
        const at = Number(line.slice(0, line.indexOf(' ')));
        if (Number.isSafeInteger(at)) yield { type: 'log', at_ms: at, line: line.slice(line.indexOf(' ') + 1) };
      }
    } catch {
      // no log
    }
    yield { type: 'end', job };
  }

  async #run(running: Running, work: (ctx: JobContext) => Promise<string>): Promise<Job> {
    const { id } = running.job;
    const file = createWriteStream(join(this.#dir, `${id}.log`), { mode: 0o600 });
    file.on('error', error => this.#log.warn({ err: error, job: id }, 'cannot write the log of a job'));
    let patch: Partial<Job>;
    try {
      const result_id = await work(this.#context(running, file));
      patch = { state: 'succeeded', result_id };
    } catch (error) {
      patch = this.#failure(running, error);
    }
    file.end();
    await finished(file).catch(() => {});
    const end: Partial<Job> = { ...patch, progress: running.job.progress, ended_at_ms: Date.now() };
    try {
      const job = await this.#store.updateJob(id, end);
      this.#publish(running, job);
      return job;
    } catch (error) {
      this.#publish(running, { ...running.job, ...end });
      throw error;
    } finally {
      void this.#prune();
    }
  }

  #publish(running: Running, job: Job): void {
    running.job = job;
    this.#running.delete(job.id);
    this.#events.emit('job.state', job.id, { state: job.state, kind: job.kind, subject: job.subject });
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
    this.#log.error({ err: error, job: running.job.id }, 'a job failed in a way that was not foreseen');
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
      for (const id of await this.#store.pruneJobs(KEEP_JOBS)) await rm(join(this.#dir, `${id}.log`), { force: true });
    } catch (error) {
      this.#log.warn({ err: error }, 'cannot prune old jobs');
    }
  }
}
