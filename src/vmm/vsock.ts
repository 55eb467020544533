/**
 * A connection from the host to a port of the guest, through Firecracker's vsock device.
 *
 * Facts (its sources): `CONNECT <port>\n` must come in one write, or the connection is dropped without a word. `OK <n>\n` is the answer;
 * what follows it is the guest's. A port nobody listens on: closed with no byte. A guest whose driver is not there yet: silence, and its
 * own timer of two seconds runs only when the next connection comes.
 */
import type { Socket } from 'node:net';
import { DeadlineError, raced } from '../lib/deadline.ts';

/** `OK ` and a number of 32 bits. */
const MAX_LINE = 32;

export type VsockFailure = 'absent' | 'nobody' | 'silent' | 'garbage';

/** `absent`: no vsock device answers there; `nobody`: the guest does not listen; `silent`: it has not answered. */
export class VsockError extends Error {
  readonly failure: VsockFailure;
  constructor(failure: VsockFailure, why: string, cause?: unknown) {
    super(why, cause === undefined ? undefined : { cause });
    this.name = 'VsockError';
    this.failure = failure;
  }
}

const readable = (socket: Socket): Promise<void> =>
  new Promise((resolve, reject) => {
    const done = () => {
      for (const event of ['readable', 'end', 'close']) socket.off(event, done);
      socket.off('error', failed);
      resolve();
    };
    const failed = (error: Error) => {
      done();
      reject(new VsockError('nobody', `the connection failed: ${error.message}`, error));
    };
    for (const event of ['readable', 'end', 'close']) socket.once(event, done);
    socket.once('error', failed);
  });

/** Reads the answer; what came behind it stays in the socket. */
const readAnswer = async (socket: Socket, port: number): Promise<void> => {
  let line = Buffer.alloc(0);
  for (;;) {
    const chunk: Buffer | null = socket.read();
    if (chunk === null) {
      if (socket.readableEnded || socket.destroyed) {
        const [failure, why] =
          line.length === 0
            ? (['nobody', `nobody in the guest listens on port ${port}`] as const)
            : (['garbage', 'the answer to CONNECT broke off'] as const);
        throw new VsockError(failure, why);
      }
      await readable(socket);
      continue;
    }
    const end = chunk.indexOf(10);
    const part = chunk.subarray(0, end === -1 ? Math.min(chunk.length, MAX_LINE + 1) : end);
    line = Buffer.concat([line, part]);
    if (line.length > MAX_LINE || (end !== -1 && !/^OK \d{1,10}$/.test(line.toString('latin1')))) {
      throw new VsockError('garbage', 'the answer to CONNECT is not one of Firecracker');
    }
    if (end === -1) continue;
    if (end + 1 < chunk.length) socket.unshift(chunk.subarray(end + 1));
    return;
  }
};

/** Asks for a port of the guest on a fresh connection to the device. Destroys it if that fails. */
export const dialGuest = async (socket: Socket, port: number, ms: number, signal: AbortSignal): Promise<Socket> => {
  const timer = new AbortController();
  const handle = setTimeout(() => timer.abort(new DeadlineError('the answer to CONNECT', ms)), ms);
  const ignore = () => {};
  socket.on('error', ignore); // `readable` hears what matters
  try {
    socket.write(`CONNECT ${port}\n`);
    await raced(readAnswer(socket, port), AbortSignal.any([timer.signal, signal]));
    return socket;
  } catch (error) {
    socket.destroy();
    signal.throwIfAborted();
    if (error instanceof DeadlineError) {
      throw new VsockError('silent', `the guest has not answered within ${ms} ms`, error);
    }
    throw error;
  } finally {
    clearTimeout(handle);
  }
};
