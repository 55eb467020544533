/** Sends a body of any length: in small writes, as fast as the guest takes it. */
import type { ClientHttp2Stream } from 'node:http2';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import { MAX_WRITE } from './link.ts';

const writable = (stream: ClientHttp2Stream): boolean => !stream.closed && !stream.destroyed && stream.writable;

const drained = (stream: ClientHttp2Stream): Promise<void> =>
  new Promise(resolve => {
    const done = () => {
      stream.off('drain', done);
      stream.off('close', done);
      resolve();
    };
    stream.once('drain', done);
    stream.once('close', done);
  });

/** Writes one chunk. False if the stream has ended before all of it was taken. */
export const sendChunk = async (stream: ClientHttp2Stream, chunk: Buffer): Promise<boolean> => {
  for (let at = 0; at < chunk.length; at += MAX_WRITE) {
    if (!writable(stream)) return false;
    if (!stream.write(chunk.subarray(at, at + MAX_WRITE))) await drained(stream);
  }
  return writable(stream);
};

const bytesOf = (chunk: unknown): Buffer => {
  if (Buffer.isBuffer(chunk)) return chunk;
  if (chunk instanceof Uint8Array) return Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  if (typeof chunk === 'string') return Buffer.from(chunk, 'utf8');
  throw new TypeError('a standard input of objects');
};

/**
 * Writes all of `source` and ends the stream; stops, and destroys `source`, when the stream ends first (the command has
 * closed its input, or the connection is lost: the answer tells). Rejects with a fault if `source` fails or is cut off: then the
 * stream has no end, and the caller resets it.
 */
export const sendAll = async (
  stream: ClientHttp2Stream,
  source: Readable,
  onSent: (bytes: number) => void,
  noun = 'the standard input',
): Promise<void> => {
  const stop = () => source.destroy();
  stream.once('close', stop);
  try {
    for await (const chunk of source) {
      const bytes = bytesOf(chunk);
      if (!(await sendChunk(stream, bytes))) return;
      onSent(bytes.length);
    }
    if (writable(stream)) stream.end();
  } catch (error) {
    if (stream.closed) return; // `stop` destroyed the source
    if (error instanceof Fault || error instanceof TypeError) throw error;
    const why = error instanceof Error ? error.message : 'it was destroyed';
    throw new Fault('canceled', `${noun[0]?.toUpperCase()}${noun.slice(1)} broke off: ${why}.`, { cause: error });
  } finally {
    stream.off('close', stop);
    source.destroy();
  }
};

/** Bytes in one frame of a framed body, at most. */
const FRAME = 64 * 1024;

async function* frames(source: Readable): AsyncGenerator<Buffer> {
  const head = (length: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(length);
    return bytes;
  };
  for await (const chunk of source) {
    const bytes = bytesOf(chunk);
    for (let at = 0; at < bytes.length; at += FRAME) {
      const part = bytes.subarray(at, at + FRAME);
      yield Buffer.concat([head(part.length), part]);
    }
  }
  yield head(0);
}

/**
 * The source in frames, the last of them empty: only that says that it is whole. A stream that is reset may look like one that
 * ended, for Node ends it first; and trailers that a server no longer wants end the whole connection (Go's).
 */
export const framed = (source: Readable): Readable => Readable.from(frames(source), { objectMode: true });
