/** How requests travel: HTTP over a Unix socket. Another way (TCP with a token) is another `Transport`. */
import type { ClientRequest, IncomingMessage, Agent as NodeAgent } from 'node:http';
import { homedir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream';
import { FAULT_CODES, Fault, type FaultCode } from '../api/fault.ts';
import type { RawTalk } from './raw_talk.ts';

// Not by `import`: that touches every export of node:http, and the lazy ones load a WebSocket client and node:crypto.
// Measured: 50 ms of CPU, against 5 ms.
const { Agent, request } = process.getBuiltinModule('node:http');

/** No daemon answered, or the connection to it was lost. */
export class Unreachable extends Error {
  readonly socket: string;
  readonly errno: string | undefined;

  constructor(socket: string, why: string, errno: string | undefined, cause?: unknown) {
    super(why, cause === undefined ? undefined : { cause });
    this.name = 'Unreachable';
    this.socket = socket;
    this.errno = errno;
  }
}

/** $NEXUS_SOCKET; else /run/nexus for root; else $XDG_RUNTIME_DIR/nexus; else ~/.local/share/nexus. */
export const defaultSocket = (): string => {
  const { NEXUS_SOCKET, XDG_RUNTIME_DIR } = process.env;
  if (NEXUS_SOCKET) return NEXUS_SOCKET;
  if (process.getuid?.() === 0) return '/run/nexus/nexusd.sock';
  if (XDG_RUNTIME_DIR) return join(XDG_RUNTIME_DIR, 'nexus/nexusd.sock');
  return join(homedir(), '.local/share/nexus/nexusd.sock');
};

export interface Outgoing {
  method: string;
  /** Path with its query. */
  path: string;
  accept: string;
  json?: string | undefined;
  upload?: Readable | Uint8Array | undefined;
  signal?: AbortSignal | undefined;
}

export interface Transport {
  readonly socket: string;
  /** Sends a request. Resolves with the head of a good answer, its body still to be read; rejects with a Fault or Unreachable. */
  send(outgoing: Outgoing): Promise<IncomingMessage>;
  /** What is open in both directions; `close` ends it. */
  readonly talks: Set<RawTalk>;
  close(): void;
}

/** Answers that are not streams are read whole, to this length in characters. */
const ANSWER_MAX = 64 * 1024 * 1024;

export const readText = async (message: IncomingMessage, socket: string): Promise<string> => {
  message.setEncoding('utf8');
  let text = '';
  try {
    for await (const chunk of message) {
      text += chunk;
      if (text.length > ANSWER_MAX)
        throw new Fault('internal', `The daemon's answer is longer than ${ANSWER_MAX} characters.`);
    }
  } catch (error) {
    throw error instanceof Fault ? error : lost(socket, error);
  }
  return text;
};

const errnoOf = (error: unknown): string | undefined =>
  error instanceof Error && 'code' in error ? String(error.code) : undefined;

export const lost = (socket: string, error: unknown): Unreachable =>
  new Unreachable(socket, `The connection to the daemon at ${socket} was lost.`, errnoOf(error), error);

const WHY: Record<string, string> = {
  ENOENT: 'there is no such socket',
  ECONNREFUSED: 'nobody listens there',
  EACCES: 'permission denied',
  ENOTSOCK: 'it is not a socket',
};

export const unreachable = (socket: string, error: unknown): Unreachable => {
  const errno = errnoOf(error);
  const why = WHY[errno ?? ''];
  if (why === undefined) return lost(socket, error);
  return new Unreachable(socket, `No daemon answers at ${socket}: ${why}.`, errno, error);
};

/** A problem document as a Fault. What is not one (something else answers on that socket) is `internal`. */
export const faultOf = (text: string, status: number): Fault => {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  if (typeof value === 'object' && value !== null && 'code' in value && 'detail' in value) {
    const code: FaultCode | undefined = FAULT_CODES.find(known => known === value.code);
    const part = (key: 'hint' | 'reason' | 'ref') => {
      const found: unknown = Reflect.get(value, key);
      return typeof found === 'string' ? found : undefined;
    };
    if (code !== undefined && typeof value.detail === 'string') {
      return new Fault(code, value.detail, { hint: part('hint'), reason: part('reason'), ref: part('ref') });
    }
  }
  return new Fault('internal', `The daemon answered with status ${status} and no problem document.`);
};

const writeBody = (outgoing: Outgoing, to: ClientRequest, onError: (error: unknown) => void): void => {
  const { upload } = outgoing;
  if (upload === undefined) to.end(outgoing.json);
  else if (upload instanceof Uint8Array) to.end(upload);
  else {
    // An early answer ends the upload; only an error of the source itself is one for the caller.
    upload.once('error', onError);
    pipeline(upload, to, () => {});
  }
};

const headersOf = (outgoing: Outgoing): Record<string, string | number> => ({
  accept: outgoing.accept,
  ...(outgoing.json === undefined
    ? {}
    : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(outgoing.json) }),
  ...(outgoing.upload === undefined ? {} : { 'content-type': 'application/octet-stream' }),
});

const attempt = (socketPath: string, agent: NodeAgent, outgoing: Outgoing): Promise<IncomingMessage> =>
  new Promise((resolve, reject) => {
    const { method, path, signal } = outgoing;
    signal?.throwIfAborted();
    const sent = request({ socketPath, agent, method, path, headers: headersOf(outgoing) });
    const onAbort = () => sent.destroy(new Error('aborted'));
    signal?.addEventListener('abort', onAbort, { once: true });
    sent.once('close', () => signal?.removeEventListener('abort', onAbort));
    sent.on('error', error => {
      if (signal?.aborted) return reject(signal.reason);
      reject(Object.assign(unreachable(socketPath, error), { reused: sent.reusedSocket }));
    });
    sent.once('response', message => {
      message.once('end', () => {
        if (!sent.writableFinished) sent.destroy(); // the daemon has said all it will; stop feeding it
      });
      resolve(message);
    });
    writeBody(outgoing, sent, error => {
      reject(error);
      sent.destroy();
    });
  });

export const unixTransport = (socket: string): Transport => {
  const agent = new Agent({ keepAlive: true });
  const talks = new Set<RawTalk>();
  /** A kept connection may have been closed by the daemon just now; what only reads is asked again on a new one. */
  const sendTwice = async (outgoing: Outgoing): Promise<IncomingMessage> => {
    try {
      return await attempt(socket, agent, outgoing);
    } catch (error) {
      const again = error instanceof Unreachable && 'reused' in error && error.reused === true;
      if (!again || outgoing.method !== 'GET') throw error;
      return await attempt(socket, agent, outgoing);
    }
  };
  return {
    socket,
    send: async outgoing => {
      const message = await sendTwice(outgoing);
      const status = message.statusCode ?? 500;
      if (status < 400) return message;
      throw faultOf(await readText(message, socket), status);
    },
    talks,
    close: () => {
      for (const talk of talks) talk.close();
      agent.destroy();
    },
  };
};
