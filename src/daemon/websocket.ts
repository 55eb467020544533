/**
 * Operations that need both directions at once: a WebSocket.
 *
 * INVARIANTS: the handler runs before the upgrade, so that its fault is an HTTP answer as any other. The next piece of the
 * output is asked for when the socket holds less than HOLD_MOST; the next frame is read when the one before was taken. When the client goes
 * away, or the daemon stops, the signal is aborted and the output's `return()` is called once. A web page gets nothing.
 */
import { type IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { FastifyInstance } from 'fastify';
import type { WebSocket } from 'ws';
import { Fault } from '../api/fault.ts';
import type { AnyOp } from '../api/ops.ts';
import type { Talk } from '../core/handler.ts';
import { raced, withDeadline } from '../lib/deadline.ts';
import { explain } from './input.ts';

const HOLD_MOST = 256 * 1024;
const FRAME_MOST = 1024 * 1024;
const TEXT_MOST = 64 * 1024;
/** How long the client may take to say goodbye. */
const CLOSE_MS = 5000;
const LAST_MS = 1000;
const NORMAL = 1000;
const FAILED = 1011;

export interface Upgrade {
  socket: Duplex;
  head: Buffer;
}

/** For Node: other protocols are none of ours, and such a request is an ordinary one. */
export const wantsWebSocket = (request: IncomingMessage): boolean =>
  request.headers.upgrade?.toLowerCase() === 'websocket';

/** Sends requests for an upgrade through the same routes as all others; `upgrades` has what belongs to them. */
export const routeUpgrades = (app: FastifyInstance, upgrades: Map<IncomingMessage, Upgrade>): void => {
  app.server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    upgrades.set(request, { socket, head });
    socket.once('close', () => upgrades.delete(request));
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    const plain = socket as Socket; // Node's own server has no others
    response.assignSocket(plain);
    response.once('finish', () => plain.destroySoon()); // nobody reads it any more: the client's end of it would not be seen
    app.routing(request, response);
  });
};

export interface WebSocketOptions {
  name: string;
  op: AnyOp;
  request: IncomingMessage;
  response: ServerResponse;
  upgrade: Upgrade | undefined;
  abort: AbortController;
  handle: () => Promise<unknown>;
  /** Checks a message; throws if it is not what the contract says. */
  check: (message: unknown) => void;
  /** Called once, when the response is no longer one of HTTP. */
  onOpen: () => void;
  problemOf: (error: unknown) => object;
  /** Called when the talk is over. */
  onOver: () => void;
}

/** Answers one such request. Rejects only before the upgrade: then the caller still owns the response. */
export const serveWebSocket = async (o: WebSocketOptions): Promise<void> => {
  const { upgrade, request } = o;
  if (upgrade === undefined || !/^[+/0-9A-Za-z]{22}==$/.test(request.headers['sec-websocket-key'] ?? ''))
    throw new Fault('invalid', `Cannot do ${o.name}: it is for a WebSocket.`);
  if (request.headers.origin !== undefined) throw new Fault('denied', `Cannot do ${o.name} for a web page.`);
  const talk = (await o.handle()) as Talk<unknown, unknown>;
  o.onOpen();
  try {
    o.response.detachSocket(upgrade.socket as Socket);
    await converse(await accept(o, upgrade), talk, o);
  } finally {
    o.abort.abort(new Fault('canceled', 'The client went away.'));
    o.onOver();
  }
};

const accept = async ({ request }: WebSocketOptions, { socket, head }: Upgrade): Promise<WebSocket> => {
  const { WebSocketServer } = await import('ws'); // most daemons do without for long
  const server = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: FRAME_MOST,
  });
  return await new Promise<WebSocket>((resolve, reject) => {
    if (socket.destroyed) throw new Error('the client went away');
    server.once('wsClientError', reject);
    socket.once('close', () => reject(new Error('the connection was lost')));
    server.handleUpgrade(request, socket, head, resolve);
  }).catch((error: unknown) => {
    socket.destroy();
    throw error;
  });
};

const converse = async (socket: WebSocket, talk: Talk<unknown, unknown>, o: WebSocketOptions): Promise<void> => {
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()));
  socket.on('error', () => {}); // close follows
  const taken = listen(socket, talk, o);
  socket.once('close', () => void farewell(o, taken()));
  const iterator = talk.output[Symbol.asyncIterator]();
  let code = NORMAL;
  try {
    for (;;) {
      const { done, value } = await raced(iterator.next(), o.abort.signal);
      if (done === true) break;
      if (!(value instanceof Uint8Array)) o.check(value);
      await send(socket, value, o.abort.signal);
    }
  } catch (error) {
    code = FAILED;
    const problem = o.problemOf(o.abort.signal.aborted ? o.abort.signal.reason : error);
    if (socket.readyState === socket.OPEN) socket.send(JSON.stringify({ ...problem, type: 'fault' }));
  } finally {
    void Promise.resolve(iterator.return?.()).catch(() => {}); // a pending next() ends it later; nobody waits
  }
  socket.resume(); // for the other's goodbye
  socket.close(code);
  const late = setTimeout(() => socket.terminate(), CLOSE_MS);
  await closed;
  clearTimeout(late);
};

const send = async (socket: WebSocket, piece: unknown, signal: AbortSignal): Promise<void> => {
  const sent = Promise.withResolvers<void>();
  const data = piece instanceof Uint8Array ? piece : JSON.stringify(piece);
  socket.send(data, error => {
    if (error == null) sent.resolve(); // else: 'close' comes, and aborts the signal
  });
  if (socket.bufferedAmount > HOLD_MOST) await raced(sent.promise, signal);
};

/** What came before the goodbye is still taken, if that does not last. */
const farewell = async (o: WebSocketOptions, taken: Promise<void>): Promise<void> => {
  await withDeadline('what the client said last', LAST_MS, taken).catch(() => {});
  o.abort.abort(new Fault('canceled', 'The client went away.'));
};

/** Hands the client's frames on, each when the one before was taken. Gives the end of those so far. */
const listen = (socket: WebSocket, talk: Talk<unknown, unknown>, o: WebSocketOptions): (() => Promise<void>) => {
  let waiting = 0;
  let last = Promise.resolve();
  socket.on('message', (data, binary) => {
    if (!Buffer.isBuffer(data) || o.abort.signal.aborted) return;
    socket.pause(); // a few may have been read with this one: at most what the kernel gave at once
    waiting++;
    last = last
      .then(() => (o.abort.signal.aborted ? undefined : talk.take(binary ? data : messageOf(o, data))))
      .catch(error => o.abort.abort(error))
      .finally(() => {
        waiting--;
        if (waiting === 0 && socket.readyState === socket.OPEN) socket.resume();
      });
  });
  return () => last;
};

const messageOf = ({ name, op }: WebSocketOptions, data: Buffer): unknown => {
  let message: unknown;
  try {
    message = data.length > TEXT_MOST ? undefined : JSON.parse(data.toString('utf8'));
  } catch {
    // said below
  }
  if (message === undefined || op.input_message === undefined)
    throw new Fault('invalid', `Cannot go on with ${name}: a message to it is no JSON, or too long.`);
  const parsed = op.input_message.safeParse(message);
  if (parsed.success) return parsed.data;
  throw new Fault('invalid', `Cannot go on with ${name}: ${explain(parsed.error, message, [])}.`);
};
