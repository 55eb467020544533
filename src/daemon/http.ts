/** The HTTP door: a loop over the contract, on a Unix socket that its owner alone may use. */
import { createHash, randomBytes } from 'node:crypto';
import { chmod, lstat, mkdir, rename, rm, rmdir, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import process from 'node:process';
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { Fault } from '../api/fault.ts';
import { type AnyOp, OP_NAMES, type OpName, ops } from '../api/ops.ts';
import type { Ctx, Download, Handlers } from '../core/handler.ts';
import { withDeadline } from '../lib/deadline.ts';
import { ensureDir } from '../lib/files.ts';
import type { Log } from '../lib/log.ts';
import { limitBodyTime, uploadBody } from './body.ts';
import { sendDownload } from './download.ts';
import { explain, parseInput } from './input.ts';
import { sendSse } from './sse.ts';
import { routeUpgrades, serveWebSocket, type Upgrade, wantsWebSocket } from './websocket.ts';

const BODY_MAX = 8 * 1024 * 1024;
const BODY_MS = 30_000;
const HEADERS_MS = 15_000;
/** How long a request in flight gets when the door closes. */
const CLOSE_MS = 5000;
/** sun_path of unix(7), without its final NUL. */
const SOCKET_PATH_MAX = 107;

export interface HttpOptions {
  handlers: Handlers;
  /** Path of the socket. The caller holds the lock of the data directory, so one that lies there is a dead daemon's. */
  socket: string;
  log: Log;
  /** What `GET /metrics` gives; default: there is no such route. */
  metrics?: { content_type: string; text(): Promise<string> };
  /** Parse every answer with the schema of its operation, and call a mismatch `internal`. For tests. */
  check_output?: boolean;
  /** How long the body of a request may take to arrive; 30 000 by default. */
  body_ms?: number;
}

export interface HttpDoor extends AsyncDisposable {
  readonly socket: string;
  /** Ends streams with a fault, lets other requests end (5 s at most), removes the socket. */
  close(): Promise<void>;
}

/** What the routes share; one for each door. */
interface Door {
  handlers: Handlers;
  log: Log;
  check_output: boolean;
  body_ms: number;
  /** What came with requests for a WebSocket, of connections that are open: the server does not count these among its own. */
  upgrades: Map<IncomingMessage, Upgrade>;
  /** One for each open stream; aborted when the door closes. */
  streams: Set<AbortController>;
}

type AnyHandler = (ctx: Ctx, input: unknown) => Promise<unknown>;

const toFault = (error: unknown, log: Log, op: string): Fault => {
  if (error instanceof Fault && error.code !== 'internal') return error;
  const status = error instanceof Error && 'statusCode' in error ? Number(error.statusCode) : 500;
  if (!(error instanceof Fault) && status >= 400 && status < 500 && error instanceof Error) {
    if (status === 413) return new Fault('invalid', `The body is larger than ${BODY_MAX} bytes.`);
    return new Fault('invalid', `The request cannot be read: ${error.message}.`);
  }
  const ref = randomBytes(6).toString('hex');
  log.error({ ref, op, err: error }, 'internal error');
  const text = error instanceof Fault ? error.message : `Cannot do ${op}: something went wrong inside Nexus.`;
  return new Fault('internal', text, { ref, hint: `The daemon's log has the cause under ${ref}.` });
};

const sendFault = (reply: FastifyReply, fault: Fault): void => {
  const text = JSON.stringify(fault.problem());
  void reply.code(fault.status).header('content-type', 'application/problem+json').send(text);
};

const check = (door: Door, name: string, op: AnyOp, answer: unknown): void => {
  if (!door.check_output) return;
  const sent: unknown = JSON.parse(JSON.stringify(answer) ?? 'null');
  const parsed = op.output.safeParse(sent);
  if (!parsed.success) {
    throw new Fault('internal', `Answer of ${name} breaks the contract: ${explain(parsed.error, sent, [])}.`);
  }
};

/** A controller that is aborted when the client goes away before the answer is complete, or when the door closes. */
const streamAbort = (door: Door, raw: ServerResponse): AbortController => {
  const abort = new AbortController();
  door.streams.add(abort);
  raw.once('close', () => {
    door.streams.delete(abort);
    if (!raw.writableFinished) abort.abort(new Fault('canceled', 'The client went away.'));
  });
  return abort;
};

const serve = async (door: Door, name: OpName, request: FastifyRequest, reply: FastifyReply): Promise<unknown> => {
  const op: AnyOp = ops[name];
  // One cast: the input below was parsed by this operation's own schema, which TypeScript cannot follow through the loop.
  const handler = door.handlers[name] as AnyHandler;
  const input = parseInput(name, op.input, {
    path: request.params as Record<string, unknown>,
    query: request.query as Record<string, unknown>,
    body: op.stream === 'upload' ? undefined : request.body,
  });
  const abort = op.stream === undefined ? new AbortController() : streamAbort(door, reply.raw);
  const body = op.stream === 'upload' ? uploadBody(request.raw) : undefined;
  const ctx: Ctx = { signal: abort.signal, actor: 'api', ...(body === undefined ? {} : { body }) };
  if (op.stream !== undefined && op.stream !== 'upload') {
    await serveStream(door, name, { request, reply, abort, handle: () => handler(ctx, input) });
    return reply;
  }
  // what was not read of an upload is dropped, or a client that sends all of it first never comes to read the answer
  const answer = await handler(ctx, input).finally(() => body?.destroy());
  check(door, name, op, answer);
  return answer;
};

interface Streaming {
  request: FastifyRequest;
  reply: FastifyReply;
  abort: AbortController;
  handle: () => Promise<unknown>;
}

/** Answers that take over the response. */
const serveStream = async (door: Door, name: OpName, { request, reply, abort, handle }: Streaming): Promise<void> => {
  const op: AnyOp = ops[name];
  const { raw } = reply;
  const { signal } = abort;
  const checked = (message: unknown) => check(door, name, op, message);
  const onOpen = () => reply.hijack();
  const problemOf = (error: unknown) => toFault(error, door.log, name).problem();
  if (op.stream === 'sse') {
    await sendSse((await handle()) as AsyncIterable<unknown>, { raw, signal, check: checked, onOpen, problemOf });
  } else if (op.stream === 'download') {
    const onError = (error: unknown) =>
      door.log.warn({ op: name, err: toFault(error, door.log, name) }, 'a download broke off');
    await sendDownload((await handle()) as Download<unknown>, { raw, signal, check: checked, onOpen, onError });
  } else {
    const upgrade = door.upgrades.get(request.raw);
    const onOver = () => door.streams.delete(abort);
    const talk = { name, op, request: request.raw, response: raw, upgrade, abort };
    await serveWebSocket({ ...talk, handle, check: checked, onOpen, problemOf, onOver });
  }
};

const addRoutes = (app: FastifyInstance, door: Door): void => {
  const routes = (scope: FastifyInstance, upload: boolean) => {
    for (const name of OP_NAMES) {
      const op: AnyOp = ops[name];
      if ((op.stream === 'upload') !== upload) continue;
      scope.route({ method: op.method, url: op.path, handler: (request, reply) => serve(door, name, request, reply) });
    }
  };
  app.register(async scope => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, text, done) => {
      if (text === '') return done(null, undefined);
      try {
        done(null, JSON.parse(String(text)));
      } catch {
        done(new Fault('invalid', 'The body is not JSON.'));
      }
    });
    scope.addContentTypeParser('*', (_request, _payload, done) => {
      done(new Fault('invalid', 'The body must be application/json.'));
    });
    limitBodyTime(scope, door.body_ms);
    routes(scope, false);
  });
  app.register(async scope => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('*', (_request, _payload, done) => done(null)); // read by the handler, as a stream
    routes(scope, true);
  });
  app.get('/openapi.json', async (_request, reply) => {
    const { openapiText } = await import('./openapi.ts'); // not needed by most daemons, and not small
    return reply.type('application/json').send(openapiText());
  });
};

/** What Node says of bytes that are not HTTP. */
const refuse = (error: Error, socket: Socket): void => {
  if (!socket.writable || ('code' in error && error.code === 'ECONNRESET')) return void socket.destroy();
  const fault = new Fault('invalid', 'The request is not HTTP.');
  const text = JSON.stringify(fault.problem());
  socket.end(
    `HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: ${text.length}\r\nconnection: close\r\n\r\n${text}`,
  );
};

const makeApp = (door: Door): FastifyInstance => {
  const onError = (error: unknown, request: FastifyRequest, reply: FastifyReply) =>
    sendFault(reply, toFault(error, door.log, `${request.method} ${request.routeOptions.url ?? request.url}`));
  const app = Fastify({
    bodyLimit: BODY_MAX,
    exposeHeadRoutes: false,
    frameworkErrors: onError,
    clientErrorHandler: refuse,
    routerOptions: { maxParamLength: 1024 },
    requestTimeout: 0, // uploads may last; the other bodies have a deadline of their own
    http: {
      headersTimeout: HEADERS_MS,
      connectionsCheckingInterval: 5000,
      shouldUpgradeCallback: wantsWebSocket,
    },
  });
  app.setErrorHandler(onError);
  app.setNotFoundHandler((request, reply) =>
    sendFault(reply, new Fault('not_found', `There is no route ${request.method} ${request.url.slice(0, 200)}.`)),
  );
  addRoutes(app, door);
  routeUpgrades(app, door.upgrades);
  return app;
};

/**
 * A directory for one socket that nobody else can enter, named after the socket: what a killed daemon left there is found again. No
 * tree is removed: somebody else may be able to write beside it.
 */
const makeNest = async (socket: string): Promise<string> => {
  const nest = join(dirname(socket), `.s${createHash('sha256').update(socket).digest('hex').slice(0, 6)}`);
  const old = await lstat(nest).catch(() => undefined);
  if (old?.isDirectory() === true && old.uid === process.getuid?.()) {
    await rm(join(nest, 's'), { force: true });
    await rmdir(nest);
  }
  await mkdir(nest, { mode: 0o700 });
  return nest;
};

/** Binds in a directory nobody else can enter, then moves the socket into place: it is 0600 before it can be reached. */
const listen = async (app: FastifyInstance, socket: string): Promise<void> => {
  await ensureDir(dirname(socket), 0o700);
  const nest = await makeNest(socket);
  const path = join(nest, 's');
  if (Math.max(path.length, socket.length) > SOCKET_PATH_MAX) {
    await rmdir(nest);
    throw new Fault('host', `Cannot listen on ${socket}: the path is longer than ${SOCKET_PATH_MAX} bytes.`, {
      hint: 'Choose a shorter one with --socket.',
    });
  }
  try {
    await app.listen({ path });
    await chmod(path, 0o600);
    await rename(path, socket);
  } finally {
    await rm(nest, { recursive: true, force: true });
  }
};

/** Opens the door. A socket file that lies at the path is replaced. */
export const openHttp = async (options: HttpOptions): Promise<HttpDoor> => {
  const { socket, log, handlers } = options;
  const { check_output = false, body_ms = BODY_MS } = options;
  const door: Door = { handlers, log, check_output, body_ms, upgrades: new Map(), streams: new Set() };
  const app = makeApp(door);
  const { metrics } = options;
  if (metrics !== undefined)
    app.get('/metrics', async (_request, reply) => reply.type(metrics.content_type).send(await metrics.text()));
  await listen(app, socket);
  const { ino } = await stat(socket);
  let closing: Promise<void> | undefined;
  const shut = async () => {
    const closed = Promise.resolve(app.close());
    for (const stream of door.streams) stream.abort(new Fault('canceled', 'The daemon is stopping.'));
    const inTime = () => withDeadline('closing the door', CLOSE_MS, closed);
    await inTime().catch(async () => {
      app.server.closeAllConnections();
      for (const { socket } of door.upgrades.values()) socket.destroy();
      await inTime().catch(error => log.error({ err: error }, 'the door does not close; it is left'));
    });
    const found = await stat(socket).catch(() => undefined);
    if (found?.ino === ino) await rm(socket, { force: true });
  };
  const close = () => {
    closing ??= shut();
    return closing;
  };
  return { socket, close, [Symbol.asyncDispose]: close };
};
