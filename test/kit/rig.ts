/** A `Guest` whose control connections a test answers itself, in the place of an agent. */
import { mkdtemp, rm } from 'node:fs/promises';
import http2, { type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Duplex, duplexPair } from 'node:stream';
import type { Facts } from '../../src/guest/facts.ts';
import { type Guest, type GuestOptions, openGuest } from '../../src/guest/guest.ts';
import { silentLog } from '../../src/lib/log.ts';
import { dial, listening } from './harness.ts';

export const FACTS: Facts = {
  generation: 1,
  agent_version: '0',
  agent_id: '0'.repeat(32),
  boot_id: 'b',
  kernel: 'k',
  os: 'o',
  hostname: 'h',
  init: 'agent',
  arch: 'x86_64',
  problems: [],
};

export interface Rig extends AsyncDisposable {
  guest: Guest;
  states: string[];
  opened: () => number;
  egress: () => Duplex;
}

/** A `Guest` whose control connections `serve` answers. */
export const rig = async (serve: (socket: Socket) => void, options: Partial<GuestOptions> = {}): Promise<Rig> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-hostile-'));
  const sockets = new Set<Socket>();
  const server = createServer(socket => {
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
    serve(socket);
  });
  await listening(server, join(dir, 's'));
  const states: string[] = [];
  let opened = 0;
  const guest = openGuest({
    open: signal => {
      opened++;
      return dial(join(dir, 's'), signal);
    },
    onState: state => states.push(state),
    onEnding: () => {},
    log: silentLog(),
    ping_ms: 500,
    ...options,
  });
  const egress = () => {
    const [ours, theirs] = duplexPair();
    guest.serveEgress(ours);
    return theirs;
  };
  const close = async () => {
    await guest[Symbol.asyncDispose]();
    server.close();
    for (const socket of sockets) socket.destroy();
    await rm(dir, { recursive: true, force: true });
  };
  return { guest, states, opened: () => opened, egress, [Symbol.asyncDispose]: close };
};

export const ask = (egress: Duplex, path: string, body: string | Buffer): Promise<number> =>
  new Promise((resolve, reject) => {
    const session = http2.connect('http://host', { createConnection: () => egress });
    session.on('error', reject);
    const request = session.request({ ':method': 'POST', ':path': path });
    request.on('response', headers => resolve(headers[':status'] ?? 0));
    request.on('error', reject);
    request.on('close', () => reject(new Error('closed')));
    request.resume();
    request.end(body);
  });

export const ring = (r: Rig, facts: object = FACTS) => ask(r.egress(), '/v1/bell', JSON.stringify(facts));

/** A guest that speaks proper HTTP/2 and answers all but pings by `answer`. */
export const speaker =
  (answer: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void) => (socket: Socket) => {
    const session = http2.performServerHandshake(socket);
    session.on('error', () => {});
    session.on('stream', (stream, headers) => {
      stream.on('error', () => {});
      stream.resume();
      if (headers[':path'] === '/v1/ping') stream.respond({ ':status': 204 }, { endStream: true });
      else answer(stream, headers);
    });
  };
