/** Reads server-sent events: the messages of the stream, or its fault. */
import type { IncomingMessage } from 'node:http';
import { Fault } from '../api/fault.ts';
import { faultOf, lost } from './transport.ts';

/** One event at most; the daemon sends far shorter ones. */
const EVENT_MAX = 16 * 1024 * 1024;

/** The data of one event, as the daemon writes them: `id:`, `event:` and one `data:` line. */
const parse = (block: string): { fault: boolean; data: string } | undefined => {
  let fault = false;
  let data: string | undefined;
  for (const line of block.split('\n')) {
    if (line.startsWith('data: ')) data = data === undefined ? line.slice(6) : `${data}\n${line.slice(6)}`;
    else if (line === 'event: fault') fault = true;
  }
  return data === undefined ? undefined : { fault, data };
};

async function* blocks(message: IncomingMessage): AsyncGenerator<string> {
  message.setEncoding('utf8');
  let rest = '';
  for await (const chunk of message) {
    let from = Math.max(0, rest.length - 1);
    rest += chunk;
    for (let end = rest.indexOf('\n\n', from); end >= 0; end = rest.indexOf('\n\n', from)) {
      yield rest.slice(0, end);
      rest = rest.slice(end + 2);
      from = 0;
    }
    if (rest.length > EVENT_MAX) throw new Fault('internal', `An event is longer than ${EVENT_MAX} bytes.`);
  }
}

/** Every message until the stream ends. Leaving the loop closes the connection. */
export async function* readSse(
  message: IncomingMessage,
  socket: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<unknown> {
  const onAbort = () => message.destroy(new Error('aborted'));
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    signal?.throwIfAborted();
    for await (const block of blocks(message)) {
      const event = parse(block);
      if (event?.fault) throw faultOf(event.data, 500);
      if (event !== undefined) yield JSON.parse(event.data);
    }
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw error instanceof Fault ? error : lost(socket, error);
  } finally {
    signal?.removeEventListener('abort', onAbort);
    message.destroy();
  }
}
