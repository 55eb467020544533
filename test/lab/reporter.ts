/** A reporter of node:test that writes one JSON line for each test, so that another process can tell of it (kit/lab.ts). */
import { inspect } from 'node:util';

/** What is read of a reporter's events; `node:test` gives them no type of their own that fits all. */
interface Event {
  type: string;
  data?: {
    name?: string;
    nesting?: number;
    message?: string;
    skip?: string | boolean;
    details?: { duration_ms?: number; type?: string; error?: Error };
  };
}

/** A failure in a test is wrapped; the reader wants what was thrown. */
const words = (error: Error | undefined): string => inspect(error?.cause ?? error, { depth: 4 }).slice(0, 16_384);

export default async function* report(source: AsyncIterable<Event>): AsyncGenerator<string> {
  const path: string[] = [];
  for await (const { type, data } of source) {
    const { name = '', nesting = 0, details } = data ?? {};
    if (type === 'test:start') path.splice(nesting, path.length, name);
    if (type === 'test:diagnostic') yield `${JSON.stringify({ type: 'note', text: data?.message ?? '' })}\n`;
    if (type !== 'test:fail' && (type !== 'test:pass' || details?.type === 'suite')) continue;
    const ms = Math.round(details?.duration_ms ?? 0);
    const result = {
      type: 'test',
      name: path.slice(0, nesting + 1).join(': '),
      ms,
      ...(data?.skip === undefined ? {} : { skip: String(data.skip) }),
      ...(type === 'test:fail' && { error: words(details?.error) }),
    };
    yield `${JSON.stringify(result)}\n`;
  }
}
