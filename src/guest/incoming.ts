/** What a guest streams to us besides the output of commands: bytes of a file, lines of JSON. Ends with a trailer, or is no result. */
import http2 from 'node:http2';
import type { z } from 'zod';
import { Fault } from '../api/fault.ts';
import { poll } from '../lib/deadline.ts';
import type { Source } from './exec.ts';
import { parseBody } from './facts.ts';
import { codeFault } from './file_fault.ts';
import { LostError } from './link.ts';

const { NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = http2.constants;
/** A line of JSON, at most. */
const LINE_MAX = 64 * 1024;
const LF = 10;
/** From the end of a stream to the word of how it ended. */
const CLOSE_MS = 1000;

/**
 * The bytes up to the end. Throws a `LostError` if the connection breaks off, a fault if the guest says what went wrong or is
 * silent for `silence_ms` while we wait.
 */
export async function* content(source: Source, what: string, silence_ms: number | null): AsyncGenerator<Buffer> {
  const { stream, link } = source;
  let silent = false;
  let timer: NodeJS.Timeout | undefined;
  const give_up = () => {
    silent = true;
    stream.close(NGHTTP2_CANCEL);
  };
  const chunks = stream[Symbol.asyncIterator]();
  try {
    for (;;) {
      if (silence_ms !== null) timer = setTimeout(give_up, silence_ms);
      const { done, value } = await chunks.next();
      clearTimeout(timer);
      if (done === true) break;
      if (!Buffer.isBuffer(value)) throw new TypeError('a stream of text');
      yield value;
    }
  } catch (error) {
    if (!silent) throw new LostError('the connection to the guest was lost', error);
  } finally {
    clearTimeout(timer);
    if (!source.ended && !stream.closed) stream.close(NGHTTP2_CANCEL);
  }
  if (silent) throw new Fault('timeout', `Cannot ${what}: the guest was silent for ${silence_ms} ms.`);
  const end = source.trailers?.['nexus-end'];
  if (end === 'ok') return;
  if (typeof end === 'string') throw codeFault(what, end);
  // A stream that goes down with its connection may look like one that ended well, until it is closed.
  await poll('the end of the stream', CLOSE_MS, () => stream.closed || undefined).catch(() => {});
  if (!link.alive || stream.aborted || stream.rstCode !== NGHTTP2_NO_ERROR) throw new LostError('the stream was reset');
  throw new Fault('guest', `Cannot ${what}: the guest broke it off.`);
}

/** The messages of a stream that is one JSON value a line. */
export async function* lines<T>(chunks: AsyncIterable<Buffer>, schema: z.ZodType<T>, what: string): AsyncGenerator<T> {
  let rest = Buffer.alloc(0);
  for await (const chunk of chunks) {
    const data = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    let from = 0;
    for (let end = data.indexOf(LF, from); end >= 0; end = data.indexOf(LF, from)) {
      yield parseBody(schema, data.subarray(from, end), what);
      from = end + 1;
    }
    rest = Buffer.from(data.subarray(from));
    if (rest.length > LINE_MAX) throw new Fault('guest', `Cannot read ${what}: the guest sent an endless line.`);
  }
  if (rest.length > 0) throw new Fault('guest', `Cannot read ${what}: its last line was cut off.`);
}
