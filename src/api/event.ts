import { z } from 'zod';
import { TimeMs } from './common.ts';
import { op } from './op.ts';

export const Event = z.strictObject({
  type: z.string().describe('noun.what, e.g. vm.state, job.state'),
  seq: z.int().min(0).describe('grows by one an event while this daemon lives'),
  at_ms: TimeMs,
  subject: z.string().describe('ID of what it is about'),
  data: z.record(z.string(), z.unknown()),
});
export type Event = z.infer<typeof Event>;

export const EventMessage = z.union([
  Event,
  z.strictObject({ type: z.literal('gap'), missed: z.int().min(1).describe('events that were dropped') }),
]);
export type EventMessage = z.infer<typeof EventMessage>;

export const eventOps = {
  'event.watch': op({
    method: 'GET',
    path: '/v1/events',
    summary: 'Stream what happens',
    input: z.strictObject({
      since: z.int().min(0).optional().describe('replay what is kept after this seq first'),
      subject: z.string().optional().describe('only events about this ID'),
    }),
    output: EventMessage,
    stream: 'sse',
  }),
};
