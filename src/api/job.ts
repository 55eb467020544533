import { z } from 'zod';
import { Bytes, id, Ref, TimeMs, TimeoutMs } from './common.ts';
import { FAULT_CODES } from './fault.ts';
import { op } from './op.ts';

export const JobState = z.enum(['queued', 'running', 'succeeded', 'failed', 'canceled', 'interrupted']);
export type JobState = z.infer<typeof JobState>;
export const JOB_ENDED: readonly JobState[] = ['succeeded', 'failed', 'canceled', 'interrupted'];

export const JobProgress = z.strictObject({
  stage: z.string().describe('what is being done now'),
  done: z.int().min(0).describe('units done in this stage'),
  total: z.int().min(0).nullable().describe('units in this stage, null if not known'),
  unit: z.enum(['bytes', 'steps']),
});
export type JobProgress = z.infer<typeof JobProgress>;

export const JobError = z.strictObject({ code: z.enum(FAULT_CODES), detail: z.string(), hint: z.string().optional() });

export const Job = z.strictObject({
  id: id('job'),
  kind: z.string().describe('the operation that started it, e.g. kernel.download'),
  subject: z.string().describe('what it works on, e.g. debian:12'),
  state: JobState,
  progress: JobProgress.nullable(),
  error: JobError.nullable().describe('why it did not succeed'),
  result_id: z.string().nullable().describe('ID of what it made'),
  created_at_ms: TimeMs,
  started_at_ms: TimeMs.nullable(),
  ended_at_ms: TimeMs.nullable(),
});
export type Job = z.infer<typeof Job>;

/** A job that was asked for just now: it begins at once, or waits for its turn. */
export const newJob = (
  id: string,
  kind: string,
  subject: string,
  state: 'queued' | 'running',
  now_ms: number,
): Job => ({
  id,
  kind,
  subject,
  state,
  progress: null,
  error: null,
  result_id: null,
  created_at_ms: now_ms,
  started_at_ms: state === 'running' ? now_ms : null,
  ended_at_ms: null,
});

export const JobMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('log'), at_ms: TimeMs, line: z.string() }),
  z.strictObject({ type: z.literal('progress'), progress: JobProgress }),
  z.strictObject({ type: z.literal('gap'), bytes: Bytes.describe('bytes of log that were dropped') }),
  z.strictObject({ type: z.literal('end'), job: Job }),
]);
export type JobMessage = z.infer<typeof JobMessage>;

const JobRef = z.strictObject({ job: Ref });

export const jobOps = {
  'job.list': op({
    method: 'GET',
    path: '/v1/jobs',
    summary: 'List jobs, newest first',
    input: z.strictObject({ state: JobState.optional(), limit: z.int().min(1).max(1000).default(100) }),
    output: z.array(Job),
    columns: ['id', 'kind', 'subject', 'state', 'created_at_ms'],
    tool: true,
  }),
  'job.get': op({
    method: 'GET',
    path: '/v1/jobs/:job',
    summary: 'Show one job',
    input: JobRef,
    output: Job,
    errors: ['not_found'],
    args: ['job'],
    tool: true,
  }),
  'job.wait': op({
    method: 'GET',
    path: '/v1/jobs/:job/wait',
    summary: 'Wait until a job has ended',
    input: z.strictObject({ job: Ref, timeout_ms: TimeoutMs.default(60_000) }),
    output: Job,
    errors: ['not_found', 'timeout'],
    args: ['job'],
    tool: true,
  }),
  'job.cancel': op({
    method: 'POST',
    path: '/v1/jobs/:job/cancel',
    summary: 'Cancel a job; returns when it has ended',
    input: JobRef,
    output: Job,
    errors: ['not_found', 'bad_state'],
    args: ['job'],
    tool: true,
  }),
  'job.log': op({
    method: 'GET',
    path: '/v1/jobs/:job/log',
    summary: 'Replay the log of a job and follow it to its end',
    input: JobRef,
    output: JobMessage,
    errors: ['not_found'],
    args: ['job'],
    stream: 'sse',
  }),
};
