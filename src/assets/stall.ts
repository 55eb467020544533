/** A stream that trickles is as dead as one that is silent. */
import type { Readable } from 'node:stream';

/** Bytes that have to come in each `stall_ms` that we spend waiting for them. */
export const STALL_BYTES = 4096;

/** Reads a stream; throws if it trickles. The time in which the reader has not asked for more does not count. */
export const watched = async function* (stream: Readable, stall_ms: number): AsyncGenerator<Buffer> {
  let waited_ms = 0; // since the last look
  let since = performance.now(); // of the present wait
  let waiting = true;
  let got = 0; // since the last look
  const look = setInterval(() => {
    const now = performance.now();
    if (waiting) {
      waited_ms += now - since;
      since = now;
    }
    if (waited_ms < stall_ms) return;
    if (got < STALL_BYTES) stream.destroy(new Error(`no more than ${got} bytes came in ${stall_ms} ms`));
    waited_ms = 0;
    got = 0;
  }, stall_ms / 8);
  try {
    for await (const chunk of stream) {
      waited_ms += performance.now() - since;
      waiting = false;
      got += chunk.length;
      yield chunk;
      since = performance.now();
      waiting = true;
    }
  } finally {
    clearInterval(look);
  }
};
