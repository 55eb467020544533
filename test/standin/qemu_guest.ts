/** The ports of the stand-in's machine, and the guest behind them. */
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { babble, type Harness, join, saysEnding, startHarness } from './harness.ts';

const MAX_PORTS = 30;

interface Port {
  nr: number;
  open: boolean;
  guest: Socket | undefined;
}

interface Chardev {
  id: string;
  server: Server;
  path: string;
  host: Socket | undefined;
  /** What is plugged into it; `deleted` while its memory is still in use. */
  port: Port | 'deleted' | undefined;
}

export interface GuestOptions {
  event: (name: string, data?: object) => void;
  /** Path of `agent-harness`; undefined: ports echo. */
  harness: string | undefined;
  /** Ports of this kind say bytes of no sense. */
  noise: string | undefined;
  boot_ms: number;
  /** The guest closes each egress port after this time. */
  egress_ms: number | undefined;
  onHarnessEnd: (code: number | null) => void;
  /** The agent has announced that the guest goes down: the harness stays, the machine resets. */
  onEnding: () => void;
}

export type Args = Record<string, unknown>;
const text = (args: Args, name: string): string => (typeof args[name] === 'string' ? args[name] : '');

export class Refusal extends Error {
  readonly kind: string;
  constructor(desc: string, kind = 'GenericError') {
    super(desc);
    this.kind = kind;
  }
}

const unixPath = (args: Args): string => {
  const path = /"path":"([^"]+)"/.exec(JSON.stringify(args.backend))?.[1];
  if (path === undefined || path.length > 107) throw new Refusal('the path of the socket is missing or too long');
  return path;
};

export class Guest {
  readonly #options: GuestOptions;
  readonly #chardevs = new Map<string, Chardev>();
  #started = false;
  #booted = false;
  #harness: Harness | undefined;
  /** Egress streams the harness has dialled, not yet joined to a port. */
  #dialled: Socket[] = [];

  constructor(options: GuestOptions) {
    this.#options = options;
  }

  get booted(): boolean {
    return this.#booted;
  }

  start(): void {
    if (this.#started) return;
    this.#started = true;
    const boot = () => {
      this.#booted = true;
      for (const dev of this.#chardevs.values()) this.#opens(dev);
    };
    const later = () => setTimeout(boot, this.#options.boot_ms);
    if (this.#options.harness === undefined) later();
    else this.#harness = this.#startHarness(this.#options.harness, later);
  }

  kill(): void {
    this.#harness?.signal('SIGKILL');
    for (const dev of this.#chardevs.values()) rmSync(dev.path, { force: true });
  }

  /** The agent is gone, the machine stays. */
  halt(): void {
    this.#harness?.signal('SIGKILL');
  }

  pause(paused: boolean): void {
    this.#harness?.signal(paused ? 'SIGSTOP' : 'SIGCONT');
  }

  list(): object[] {
    return [...this.#chardevs.values()].map(({ id, path, port }) => ({
      label: id,
      filename: path,
      'frontend-open': typeof port === 'object' && port.open,
    }));
  }

  async chardevAdd(args: Args): Promise<object> {
    const id = text(args, 'id');
    const path = unixPath(args);
    if (this.#chardevs.has(id)) throw new Refusal(`Chardev '${id}' already exists`);
    const dev: Chardev = { id, server: createServer(), path, host: undefined, port: undefined };
    dev.server.on('connection', socket => {
      socket.on('error', () => {});
      dev.host = socket;
      socket.once('close', () => {
        if (dev.host === socket) dev.host = undefined;
      });
    });
    await new Promise<void>((resolve, reject) => dev.server.once('error', reject).listen(path, resolve));
    this.#chardevs.set(id, dev);
    return {};
  }

  async deviceAdd(args: Args): Promise<object> {
    const dev = this.#chardevs.get(text(args, 'chardev'));
    if (text(args, 'driver') !== 'virtserialport' || dev === undefined)
      throw new Refusal("Property 'chardev' is wrong");
    const nr = Number(args.nr ?? 0);
    const taken = [...this.#chardevs.values()].some(({ port }) => typeof port === 'object' && port.nr === nr);
    if (nr < 1 || nr > MAX_PORTS || taken) throw new Refusal(`virtio-serial-bus: A port already exists at id ${nr}`);
    // the host's connection may still be on its way through the listener
    for (let i = 0; dev.host === undefined && i < 50; i++) await new Promise(resolve => setTimeout(resolve, 1));
    dev.port = { nr, open: false, guest: undefined };
    setTimeout(() => this.#opens(dev), 1);
    return {};
  }

  deviceDel(args: Args): object {
    const id = text(args, 'id');
    const dev = this.#chardevs.get(id);
    if (typeof dev?.port !== 'object') throw new Refusal(`Device '${id}' not found`, 'DeviceNotFound');
    const { guest } = dev.port;
    dev.port = 'deleted';
    guest?.destroy();
    setTimeout(() => {
      dev.port = undefined;
    }, 2);
    this.#options.event('DEVICE_DELETED', { device: id, path: `/machine/peripheral/${id}` });
    return {};
  }

  chardevRemove(args: Args): object {
    const id = text(args, 'id');
    const dev = this.#chardevs.get(id);
    if (dev === undefined) throw new Refusal(`Chardev '${id}' not found`);
    if (dev.port !== undefined) throw new Refusal(`Chardev '${id}' is busy`);
    this.#chardevs.delete(id);
    dev.host?.end();
    dev.server.close();
    rmSync(dev.path, { force: true });
    return {};
  }

  #setOpen(dev: Chardev, open: boolean): void {
    if (typeof dev.port !== 'object' || dev.port.open === open) return;
    dev.port.open = open;
    this.#options.event('VSERPORT_CHANGE', { open, id: dev.id });
  }

  /** The guest sees the port and opens its end, once. */
  #opens(dev: Chardev): void {
    const { port, host } = dev;
    if (typeof port !== 'object' || port.open || !this.#booted) return;
    const egress = dev.id.startsWith('nexus.egress.');
    if (host !== undefined && this.#options.noise === (egress ? 'egress' : 'control')) {
      this.#setOpen(dev, true);
      babble(host);
      return;
    }
    if (this.#options.harness !== undefined) {
      const guest = egress ? this.#dialled.shift() : this.#harness?.control();
      if (guest !== undefined) this.#join(dev, port, guest);
      return;
    }
    this.#setOpen(dev, true);
    host?.pipe(host, { end: false });
    const ms = egress ? this.#options.egress_ms : undefined;
    if (ms !== undefined) setTimeout(() => this.#setOpen(dev, false), ms);
  }

  /** Both ways between the host's end and the guest's, as long as both are there. */
  #join(dev: Chardev, port: Port, guest: Socket): void {
    const { host } = dev;
    guest.on('error', () => {});
    if (host === undefined) {
      guest.destroy();
      return;
    }
    port.guest = guest;
    this.#setOpen(dev, true);
    join(host, guest);
    guest.on('data', (chunk: Buffer) => {
      if (dev.id.startsWith('nexus.egress.') && saysEnding(chunk)) this.#options.onEnding();
    });
    guest.once('close', () => this.#setOpen(dev, false));
    host.once('close', () => guest.destroy());
  }

  #startHarness(program: string, onReady: () => void): Harness {
    const onDial = (stream: Socket) => {
      this.#dialled = [...this.#dialled.filter(s => !s.destroyed), stream];
      for (const dev of this.#chardevs.values()) if (dev.id.startsWith('nexus.egress.')) this.#opens(dev);
    };
    return startHarness({ program, onDial, onReady, onEnd: this.#options.onHarnessEnd });
  }
}
