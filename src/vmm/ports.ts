/**
 * Virtio-serial ports of a QEMU machine, one for each connection: plugged for it, unplugged after it, never used again.
 *
 * The guest's close of its end is told by QEMU as VSERPORT_CHANGE, the host's socket gets no end of file. QEMU holds that event back
 * for up to a second where another one of the same port came just before.
 *
 * A fixed port is a pipe without connections (what the last session left in it breaks the next); a port of one's own
 * has a beginning and an end. Chardev, device and socket share the port's name, `nexus.<kind>.<n>`.
 *
 * INVARIANTS: no name is used twice in the life of a VMM, by whatever daemon: n is at least the host's monotonic clock
 * in ms and grows. A port is unplugged exactly once. At most MAX_PORTS are plugged; control connections wait for a place
 * in the order they came, and `reserved` places are never theirs. A port that could not be unplugged is a stray and goes
 * at the next `sweep`, which runs on every new control connection to QEMU before anything else does.
 */
import { randomInt } from 'node:crypto';
import type { Socket } from 'node:net';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import { DeadlineError, sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { type Qmp, QmpError, type QmpEvent } from './qmp.ts';

/** `max_ports` of the bus. QEMU keeps number 0 for a console port, so one less can be plugged. */
export const BUS_PORTS = 31;
const MAX_PORTS = BUS_PORTS - 1;
/** Kept for egress: the present port and the one that follows it while that is being unplugged. */
const EGRESS_PLACES = 2;
const UNPLUG_MS = 10_000;
/** How long a reader may take for what the guest wrote before it closed its end. */
const LINGER_MS = 5_000;

export type PortKind = 'control' | 'egress';

export interface Port {
  readonly name: string;
  readonly socket: Socket;
  /** Settles when the port is unplugged, or given up as a stray. */
  readonly gone: Promise<void>;
}

interface Plugged {
  name: string;
  kind: PortKind;
  socket: Socket | undefined;
  /** The guest has opened its end. */
  opened: boolean;
  /** Its number on the bus. */
  nr: number;
  deleted: PromiseWithResolvers<void>;
  gone: PromiseWithResolvers<void>;
  unplugging: boolean;
}

export interface PortsOptions {
  command: (command: string, args?: Record<string, unknown>, ms?: number) => Promise<unknown>;
  /** Connects to a socket in the VM's directory. */
  connect: (name: string, signal: AbortSignal) => Promise<Socket>;
  remove: (name: string) => Promise<void>;
  /** How long an `open` may wait for a free place, ms. */
  wait_ms?: number;
  log: Log;
}

const Chardevs = z.array(z.looseObject({ label: z.string(), 'frontend-open': z.boolean() }));
const OURS = /^nexus\.(control|egress)\.\d+$/;

const monotonicMs = (): number => Number(process.hrtime.bigint() / 1_000_000n);

export class Ports {
  readonly #options: PortsOptions;
  readonly #plugged = new Map<string, Plugged>();
  readonly #queue: PromiseWithResolvers<void>[] = [];
  readonly #stop = new AbortController();
  #last = 0;
  #last_nr = randomInt(MAX_PORTS);
  #free = MAX_PORTS - EGRESS_PLACES;

  constructor(options: PortsOptions) {
    this.#options = options;
  }

  /** A new port, its host end connected. What is written waits until the guest has opened its end. */
  async open(kind: PortKind, signal: AbortSignal): Promise<Port> {
    const both = AbortSignal.any([signal, this.#stop.signal]);
    both.throwIfAborted();
    if (kind === 'control') await this.#takePlace(both);
    this.#last = Math.max(this.#last + 1, monotonicMs());
    const port: Plugged = {
      name: `nexus.${kind}.${this.#last}`,
      kind,
      socket: undefined,
      opened: false,
      nr: this.#nextNr(),
      deleted: Promise.withResolvers(),
      gone: Promise.withResolvers(),
      unplugging: false,
    };
    this.#plugged.set(port.name, port);
    try {
      const socket = await this.#plug(port, both);
      return { name: port.name, socket, gone: port.gone.promise };
    } catch (error) {
      void this.#unplug(port);
      throw error;
    }
  }

  onEvent({ event, data }: QmpEvent): void {
    if (event === 'DEVICE_DELETED' && typeof data.device === 'string') {
      this.#plugged.get(data.device)?.deleted.resolve();
    }
    if (event !== 'VSERPORT_CHANGE' || typeof data.id !== 'string') return;
    const port = this.#plugged.get(data.id);
    if (port === undefined) return;
    if (data.open === true) port.opened = true;
    else if (port.opened) void this.#unplug(port);
  }

  /**
   * Puts things in order on a new control connection: ports nobody here knows go (those of an earlier daemon, strays),
   * and those whose guest closed its end unseen are unplugged.
   */
  async sweep(qmp: Qmp): Promise<void> {
    const chardevs = Chardevs.parse(await qmp.command('query-chardev'));
    for (const { label, 'frontend-open': open } of chardevs) {
      if (!OURS.test(label)) continue;
      const port = this.#plugged.get(label);
      if (port === undefined) await this.#removeStray(qmp, label);
      else if (open) port.opened = true;
      else if (port.opened) void this.#unplug(port);
    }
  }

  /** Lets go of every socket. The ports stay plugged: the VMM has ended, or another daemon will sweep. */
  close(): void {
    this.#stop.abort(new Fault('vmm', 'The machine has ended or was let go.'));
    for (const port of this.#plugged.values()) {
      port.socket?.destroy();
      port.gone.resolve();
    }
    this.#plugged.clear();
  }

  async #plug(port: Plugged, signal: AbortSignal): Promise<Socket> {
    const { name } = port;
    const path = `${name}.sock`;
    const { command, connect, remove } = this.#options;
    const addr = { type: 'unix', data: { path } };
    await command('chardev-add', {
      id: name,
      backend: { type: 'socket', data: { addr, server: true, wait: false } },
    });
    const socket = await connect(path, signal);
    port.socket = socket;
    socket.on('error', () => {}); // 'close' follows
    socket.once('close', () => void this.#unplug(port));
    await remove(path);
    await command('device_add', { driver: 'virtserialport', bus: 'vs.0', nr: port.nr, id: name, name, chardev: name });
    signal.throwIfAborted();
    return socket;
  }

  async #unplug(port: Plugged): Promise<void> {
    if (port.unplugging || this.#stop.signal.aborted) return;
    port.unplugging = true;
    const { command, remove, log } = this.#options;
    try {
      await this.#removeDevice(command, port);
      await this.#removeChardev(command, port.name);
      await remove(`${port.name}.sock`);
    } catch (error) {
      const level = error instanceof QmpError || error instanceof DeadlineError ? 'warn' : 'debug';
      log[level]({ err: error, port: port.name }, 'a port could not be unplugged, it goes at the next sweep');
    }
    this.#plugged.delete(port.name);
    if (port.kind === 'control') this.#givePlace();
    port.gone.resolve();
    // QEMU has closed its end behind the guest's last byte; a reader that does not come for it loses it.
    const { socket } = port;
    if (socket === undefined || socket.destroyed) return;
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once('close', () => clearTimeout(timer));
  }

  async #removeDevice(command: PortsOptions['command'], port: Plugged): Promise<void> {
    try {
      await command('device_del', { id: port.name });
    } catch (error) {
      if (error instanceof QmpError && error.kind === 'DeviceNotFound') return;
      throw error;
    }
    await withDeadline('unplugging a port', UNPLUG_MS, port.deleted.promise, this.#stop.signal);
  }

  /** QEMU frees the device a little after it has said so; until then the chardev is busy. */
  async #removeChardev(command: PortsOptions['command'], name: string): Promise<void> {
    const end = performance.now() + UNPLUG_MS;
    for (let wait = 1; ; wait = Math.min(wait * 2, 100)) {
      try {
        await command('chardev-remove', { id: name });
        return;
      } catch (error) {
        if (!(error instanceof QmpError) || performance.now() > end) throw error;
        if (error.message.includes('not found')) return;
      }
      await sleep(wait, undefined, { signal: this.#stop.signal });
    }
  }

  async #removeStray(qmp: Qmp, name: string): Promise<void> {
    const command: PortsOptions['command'] = (what, args, ms) => qmp.command(what, args, ms);
    try {
      await command('device_del', { id: name }).catch(error => {
        if (!(error instanceof QmpError && error.kind === 'DeviceNotFound')) throw error;
      });
      await this.#removeChardev(command, name);
      await this.#options.remove(`${name}.sock`);
    } catch (error) {
      this.#options.log.warn({ err: error, port: name }, 'an old port could not be unplugged');
    }
  }

  /** Numbers go round: what a guest still says of a port that was just unplugged does not hit the next one. */
  #nextNr(): number {
    const used = new Set([...this.#plugged.values()].map(port => port.nr));
    do this.#last_nr = (this.#last_nr % MAX_PORTS) + 1;
    while (used.has(this.#last_nr) && used.size < MAX_PORTS);
    return this.#last_nr;
  }

  async #takePlace(signal: AbortSignal): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    const turn = Promise.withResolvers<void>();
    this.#queue.push(turn);
    const ms = this.#options.wait_ms ?? 10_000;
    try {
      await withDeadline('waiting for a free port', ms, turn.promise, signal);
    } catch (error) {
      const at = this.#queue.indexOf(turn);
      if (at === -1)
        this.#givePlace(); // it came just now: pass it on
      else this.#queue.splice(at, 1);
      signal.throwIfAborted();
      throw new Fault('busy', `Cannot connect to the guest: all ${MAX_PORTS - EGRESS_PLACES} ports are in use.`, {
        cause: error,
      });
    }
  }

  #givePlace(): void {
    const next = this.#queue.shift();
    if (next === undefined) this.#free++;
    else next.resolve();
  }
}
