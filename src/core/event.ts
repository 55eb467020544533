import type { EventMessage } from '../api/event.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';

export const eventHandlers = (host: Host): HandlersOf<'event'> => ({
  'event.watch': async (ctx, { since, subject }) => {
    const signal = AbortSignal.any([ctx.signal, host.closing]);
    return only(host, host.events.watch({ since, signal }), subject);
  },
});

const only = async function* (
  host: Host,
  events: AsyncIterable<EventMessage>,
  subject: string | undefined,
): AsyncGenerator<EventMessage> {
  for await (const event of events) {
    if (subject === undefined || !('subject' in event) || event.subject === subject) yield event;
  }
  host.closing.throwIfAborted(); // it has not come to an end, the daemon has
};
