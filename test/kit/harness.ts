/**
 * The real agent on this host, as a guest without a machine: `agent-harness` behind a proxy that can cut or silence its
 * control connections.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Guest, type GuestOptions, openGuest } from '../../src/guest/guest.ts';
import { poll } from '../../src/lib/deadline.ts';
import { exists } from '../../src/lib/files.ts';
import { silentLog } from '../../src/lib/log.ts';
import { procStat } from '../../src/lib/proc.ts';
import { agentBinaries } from './agent.ts';

export const listening = (server: Server, path: string): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });

export const dial = (path: string, signal: AbortSignal): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect({ path, signal });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });

const gone = (child: ChildProcess): Promise<void> =>
  new Promise(resolve => {
    if (child.exitCode !== null || child.signalCode !== null) resolve();
    else child.once('exit', () => resolve());
  });

/** Commands outlive the agent: each leads a session of its own. Ends those that this agent started. */
const endCommands = async (agent: number): Promise<void> => {
  for (const name of await readdir('/proc')) {
    const stat = /^[1-9]\d*$/.test(name) ? await procStat(Number(name)) : undefined;
    if (stat?.ppid !== agent || stat.pid <= 1) continue;
    try {
      process.kill(-stat.pid, 'SIGKILL');
    } catch {
      // it has ended
    }
  }
};

/** Joins each connection at `path` with one to `target`. */
class CutProxy {
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  readonly #server: Server;
  opened = 0;
  /** True: new connections are ended at once. */
  refuse = false;

  constructor(target: string) {
    this.#server = createServer(host => {
      if (this.refuse) {
        host.destroy();
        return;
      }
      this.opened++;
      const guest = connect(target);
      const pair = [host, guest] as const;
      this.#pairs.add(pair);
      const end = () => {
        host.destroy();
        guest.destroy();
        this.#pairs.delete(pair);
      };
      for (const socket of pair) socket.on('error', end).on('close', end);
      host.pipe(guest);
      guest.pipe(host);
    });
  }

  listen(path: string): Promise<void> {
    return listening(this.#server, path);
  }

  /** Cuts every connection in the middle of whatever it carries. */
  cut(): void {
    for (const [host, guest] of this.#pairs) {
      host.destroy();
      guest.destroy();
    }
  }

  /** The present connections stay and carry nothing more. */
  silence(): void {
    for (const [host, guest] of this.#pairs) {
      host.unpipe(guest).pause();
      guest.unpipe(host).pause();
    }
  }

  close(): void {
    this.#server.close();
    this.cut();
  }
}

export interface Harness extends AsyncDisposable {
  guest: Guest;
  proxy: CutProxy;
  states: string[];
  endings: string[];
  /** A path for the control connections of another `Guest`. */
  control: string;
}

/** A running agent and a `Guest` that its bell has reached. */
export const harness = async (options: Partial<GuestOptions> = {}): Promise<Harness> => {
  const { harness: program } = await agentBinaries();
  const dir = await mkdtemp(join(tmpdir(), 'nexus-guest-'));
  const [agent, control, egress] = ['agent', 'control', 'egress'].map(name => join(dir, name));
  if (agent === undefined || control === undefined || egress === undefined) throw new Error('unreachable');
  const states: string[] = [];
  const endings: string[] = [];
  const guest = openGuest({
    open: signal => dial(control, signal),
    onState: state => states.push(state),
    onEnding: (kind, by) => endings.push(`${kind} by ${by}`),
    log: silentLog(),
    ...options,
  });
  const proxy = new CutProxy(agent);
  await proxy.listen(control);
  const server = createServer(socket => void guest.serveEgress(socket));
  await listening(server, egress);
  const child = spawn(program, ['-egress', egress, agent], { stdio: ['ignore', 'ignore', 'inherit'] });
  const close = async () => {
    await guest[Symbol.asyncDispose]();
    server.close();
    proxy.close();
    if (child.pid !== undefined) await endCommands(child.pid);
    child.kill('SIGKILL');
    await gone(child);
    await rm(dir, { recursive: true, force: true });
  };
  try {
    await poll('the control socket of the agent', 10_000, async () => (await exists(agent)) || undefined);
    await guest.ready(AbortSignal.timeout(10_000));
  } catch (error) {
    await close();
    throw error;
  }
  return { guest, proxy, states, endings, control, [Symbol.asyncDispose]: close };
};
