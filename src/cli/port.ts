/**
 * `nexusctl port`: ports of a VM on this host, for as long as it runs.
 *
 * INVARIANTS: each connection here is one there, with its own ends: a half-close is passed on, a reset is a reset. Nothing waits for a
 * connection but itself. That a port of the guest cannot be reached is said once, until it can.
 */
import { createServer, type Server, type Socket } from 'node:net';
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import type { PortMessage } from '../api/port.ts';
import type { Talk } from '../client/raw_talk.ts';
import { plain } from '../lib/text.ts';
import { type Cli, note, out, outBytes } from './cli.ts';
import { json } from './show.ts';

const LEAVING = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface Pair {
  /** Here; 0: a free one. */
  local: number;
  guest: number;
}

type PortTalk = Talk<PortMessage, PortMessage>;

const number = (text: string, least: number): number | undefined => {
  const value = /^\d{1,5}$/.test(text) ? Number(text) : -1;
  return value >= least && value <= 65_535 ? value : undefined;
};

/** `3000:8080`: 3000 here is 8080 in the VM; `8080`: the same; `:8080` and `0:8080`: any free one here. */
export const parsePair = (text: string): Pair => {
  const [first = '', second, ...more] = text.split(':');
  const guest = number(second ?? first, 1);
  const local = first === '' && second !== undefined ? 0 : number(first, 0);
  if (guest !== undefined && local !== undefined && more.length === 0) return { local, guest };
  throw new Fault('invalid', `Cannot read '${text}': it must be HOST:GUEST, such as 3000:8080, :8080 or 8080.`);
};

const listening = (server: Server, address: string, port: number): Promise<number> =>
  new Promise((resolve, reject) => {
    server.once('error', error => {
      const code = 'code' in error ? error.code : '';
      const why = code === 'EADDRINUSE' ? 'it is in use' : code === 'EACCES' ? 'that needs more rights' : error.message;
      reject(new Fault('host', `Cannot listen on port ${port} of ${address}: ${why}.`));
    });
    server.listen(port, address, () => {
      const bound = server.address();
      resolve(typeof bound === 'object' && bound !== null ? bound.port : port);
    });
  });

const toGuest = (socket: Socket, talk: PortTalk): void => {
  socket.on('data', (bytes: Buffer) => {
    socket.pause();
    talk.send(bytes).finally(() => socket.resume());
  });
  socket.once('end', () => void talk.send({ type: 'end' }));
  socket.once('close', broken => {
    if (broken) talk.close(); // else both ends were passed on, and the daemon closes it when the guest has them
  });
};

const fromGuest = async (socket: Socket, talk: PortTalk): Promise<void> => {
  for await (const piece of talk) {
    if (!(piece instanceof Uint8Array)) socket.end();
    else if (!socket.write(piece)) {
      await new Promise<void>(resolve => {
        const done = () => {
          socket.off('drain', done).off('close', done);
          resolve();
        };
        socket.once('drain', done).once('close', done);
      });
    }
  }
};

/** Joins a connection with the VM's port. Rejects where that cannot be had; a break later is the connection's own matter. */
const join = async (cli: Cli, vm: string, port: number, socket: Socket, signal: AbortSignal): Promise<void> => {
  const gone = new AbortController();
  socket.once('close', () => gone.abort(new Fault('canceled', 'The connection was closed.')));
  const talk = await cli.nexus.port.open({ vm, port }, { signal: AbortSignal.any([gone.signal, signal]) });
  toGuest(socket, talk);
  socket.resume();
  fromGuest(socket, talk).then(
    () => socket.end(),
    () => socket.resetAndDestroy(),
  );
};

/** A server for one port. */
const serve = (cli: Cli, vm: string, port: number, signal: AbortSignal): Server => {
  let silent = false;
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, socket => {
    socket.on('error', () => {}); // close follows
    join(cli, vm, port, socket, signal).then(
      () => {
        silent = false;
      },
      (error: unknown) => {
        const left = socket.destroyed || signal.aborted;
        socket.resetAndDestroy();
        if (left || silent) return;
        silent = true;
        note(`note: ${plain(error instanceof Error ? error.message : String(error))}\n`);
      },
    );
    const onAbort = () => socket.destroy();
    signal.addEventListener('abort', onAbort, { once: true });
    socket.once('close', () => signal.removeEventListener('abort', onAbort));
    socket.setNoDelay(true);
  });
  return server;
};

/** Listens until a signal comes. */
export const portCommand = async (cli: Cli, vm: string, texts: readonly string[], address: string): Promise<void> => {
  const pairs = texts.map(parsePair);
  const { state } = await cli.nexus.vm.get({ vm });
  if (state !== 'running') throw new Fault('bad_state', `Cannot reach ports of VM '${vm}': it is ${state}.`);
  const over = new AbortController();
  const servers: Server[] = [];
  const left = Promise.withResolvers<void>();
  for (const name of LEAVING) process.once(name, () => left.resolve());
  try {
    for (const { local, guest } of pairs) {
      const server = serve(cli, vm, guest, over.signal);
      servers.push(server);
      const port = await listening(server, address, local);
      if (cli.json) out(json({ address, port, guest_port: guest }, 0));
      else out(`${address.includes(':') ? `[${address}]` : address}:${port} is port ${guest} of VM ${plain(vm)}\n`);
    }
    await left.promise;
  } finally {
    over.abort(new Fault('canceled', 'The ports are closed.'));
    for (const server of servers) server.close();
  }
};

/** Joins standard input and output with a port of a VM. */
export const portPipe = async (
  cli: Cli,
  vm: string,
  port: number,
  host: '127.0.0.1' | '::1' | undefined,
): Promise<void> => {
  const talk = await cli.nexus.port.open({ vm, port, ...(host === undefined ? {} : { host }) });
  process.stdin.on('data', (bytes: Buffer) => {
    process.stdin.pause();
    talk.send(bytes).finally(() => process.stdin.resume());
  });
  process.stdin.once('end', () => void talk.send({ type: 'end' }));
  try {
    for await (const piece of talk) {
      if (piece instanceof Uint8Array) await outBytes(piece);
    }
  } finally {
    process.stdin.destroy();
  }
};
