/** The vsock device of the stand-in, its two kinds of sockets, and the guest behind them. */
import { connect, createServer, type Socket } from 'node:net';
import { Refused } from './firecracker_api.ts';
import { babble, type Harness, join, saysEnding, startHarness } from './harness.ts';

const CONTROL_PORT = 1024;
const EGRESS_PORT = 1025;
/** `CONNECT ` and a digit and the newline are read at once, or nothing is. */
const LEAST = 10;
const MOST = 32;
const MAX_PATH = 107;
const REDIAL_MS = 10;
const REDIAL_MOST_MS = 1000;

export interface VsockOptions {
  at: (point: string) => Promise<void>;
  /** A way to answer CONNECT that no Firecracker has, but for `silent`, `close` and `glued`. */
  how: string | undefined;
  /** Path of `agent-harness`; undefined: the guest echoes. */
  harness: string | undefined;
  /** The guest's `control` or `egress` streams say bytes of no sense. */
  noise: string | undefined;
  boot_ms: number;
  /** The guest ends each stream that it dialled after this time. */
  egress_ms: number | undefined;
  dials: number;
  dial_loop: boolean;
  onHarnessEnd: (code: number | null) => void;
  /** The agent has announced that the guest goes down: the machine resets. */
  onEnding: () => void;
}

/** `glued`: what follows the answer comes with it; the others never get further. */
const answers: Record<string, (socket: Socket) => void> = {
  silent: () => {},
  garbage: socket => void socket.write('HTTP/1.1 400 Bad Request\r\n\r\n'),
  noline: socket => void socket.write('OK 1073741824'),
  huge: socket => void socket.write(Buffer.alloc(1024 * 1024, 'O')),
  close: socket => void socket.destroy(),
  broken: socket => void socket.end('OK 10737'),
};

export class Vsock {
  readonly #options: VsockOptions;
  #path = '';
  #booted = false;
  #harness: Harness | undefined;
  /** Connections of either side that came before the guest's driver was there. */
  #early: (() => void)[] = [];
  #last_port = 2 ** 30;

  constructor(options: VsockOptions) {
    this.#options = options;
  }

  /** As the real one at the PUT: a path that is taken is refused. */
  async listen(path: string, cid: number): Promise<void> {
    if (path.length > MAX_PATH) throw new Refused('The path of the vsock device is too long.');
    if (cid < 3 || cid >= 2 ** 32) throw new Refused(`Invalid guest CID ${cid}.`);
    this.#path = path;
    const server = createServer(socket => this.#take(socket));
    await new Promise<void>((resolve, reject) => {
      server.once('error', error => reject(new Refused(`Cannot create backend for vsock device: ${error.message}`)));
      server.listen(path, resolve);
    });
  }

  start(): void {
    const boot = () => {
      this.#booted = true;
      for (const take of this.#early.splice(0)) take();
      if (this.#options.harness === undefined) this.#dialAll();
    };
    const later = () => setTimeout(boot, this.#options.boot_ms);
    const { harness: program, onHarnessEnd } = this.#options;
    if (program === undefined) later();
    else {
      const onDial = (stream: Socket) => this.#whenBooted(() => this.#dialFor(stream));
      this.#harness = startHarness({ program, onDial, onReady: later, onEnd: onHarnessEnd });
    }
  }

  kill(): void {
    this.#harness?.signal('SIGKILL');
  }

  #take(socket: Socket): void {
    socket.on('error', () => {});
    const read = () => socket.once('data', (chunk: Buffer) => void this.#connect(socket, chunk));
    this.#whenBooted(read);
  }

  #whenBooted(work: () => void): void {
    if (this.#booted) work();
    else this.#early.push(work);
  }

  async #connect(socket: Socket, chunk: Buffer): Promise<void> {
    socket.pause();
    const end = chunk.indexOf(10);
    const port = /^connect (\d{1,10})$/i.exec(chunk.subarray(0, Math.max(0, end)).toString('latin1'))?.[1];
    if (chunk.length < LEAST || end === -1 || end >= MOST || port === undefined) {
      socket.destroy();
      return;
    }
    await this.#options.at('CONNECT').catch(() => socket.destroy());
    const { how } = this.#options;
    if (how !== undefined && answers[how] !== undefined) answers[how](socket);
    else if (Number(port) !== CONTROL_PORT) socket.destroy();
    else this.#accept(socket, chunk.subarray(end + 1));
  }

  #accept(socket: Socket, payload: Buffer): void {
    const line = `OK ${this.#last_port++}\n`;
    const { how } = this.#options;
    const go = () => {
      if (payload.length > 0) socket.unshift(payload);
      const guest = this.#harness?.control();
      if (this.#options.noise === 'control') babble(socket);
      else if (guest === undefined) socket.pipe(socket);
      else this.#pair(socket, guest);
    };
    if (how === 'drip') {
      for (const [i, byte] of [...line].entries()) setTimeout(() => socket.write(byte), 5 * i);
      setTimeout(go, 5 * line.length);
      return;
    }
    socket.write(how === 'glued' ? `${line}glued` : line);
    go();
  }

  /** What ends on one side ends on the other, as a whole: there is no half-close. */
  #pair(host: Socket, guest: Socket): void {
    guest.on('error', () => {});
    join(host, guest);
    host.once('close', () => guest.destroy());
    guest.once('close', () => host.destroy());
  }

  #dialHost(): Socket {
    return connect(`${this.#path}_${EGRESS_PORT}`).on('error', () => {});
  }

  /** The agent has dialled: its stream goes to the host, or ends. */
  #dialFor(guest: Socket): void {
    const host = this.#dialHost();
    if (this.#options.noise === 'egress') babble(host);
    this.#pair(host, guest);
    guest.on('data', (chunk: Buffer) => {
      if (saysEnding(chunk)) this.#options.onEnding();
    });
    this.#endLater(host);
  }

  #dialAll(): void {
    const { dials, dial_loop } = this.#options;
    for (let i = 0; i < dials; i++) this.#dialEcho(REDIAL_MS);
    if (dial_loop) setInterval(() => this.#dialHost().resume(), 0);
  }

  /** A guest that echoes dials again when its stream has ended. */
  #dialEcho(wait: number): void {
    const host = this.#dialHost();
    host.once('connect', () => {
      host.pipe(host);
      this.#endLater(host);
    });
    host.once('close', failed => {
      const next = failed ? Math.min(2 * wait, REDIAL_MOST_MS) : REDIAL_MS;
      setTimeout(() => this.#dialEcho(next), next);
    });
  }

  #endLater(host: Socket): void {
    const { egress_ms } = this.#options;
    if (egress_ms !== undefined) setTimeout(() => host.destroy(), egress_ms);
  }
}
