/**
 * A VM's run directory, held by a descriptor: paths through it are short (a Unix socket's path ends at 107 bytes,
 * and Node cuts a longer one silently), and nobody can put another directory in its place meanwhile.
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  existsSync,
  type FSWatcher,
  fchownSync,
  fstatSync,
  lchownSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  unlinkSync,
  watch,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { raced } from '../lib/deadline.ts';
import { plain } from '../lib/text.ts';

const { O_APPEND, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = constants;
/** Linux' own, the same on x86_64 and aarch64: a descriptor of the file itself, whatever it is. open(2). */
const O_PATH = 0o10000000;

export const QMP_SOCKET = 'qmp.sock';
export const API_SOCKET = 'api.sock';
export const VSOCK_SOCKET = 'v.sock';
export const CONSOLE_FIFO = 'console';
export const METRICS_FIFO = 'metrics';
/** Ends the keeper of the two. */
export const KEEPER_FIFO = 'keeper';
/** The sums of what came through that FIFO. */
export const COUNTED = 'counted';
/** The VMM's stderr. */
export const VMM_LOG = 'vmm.log';
/** Where a VMM writes its log by itself. */
export const OWN_LOG = 'own.log';

/** How often it is looked for what the kernel should tell of. */
const LOOK_MS = 100;

/** Names of what a VMM listens on. */
export const SOCKET = /\.sock(_\d+)?$/;
const MAX_LOG_BYTES = 1024 * 1024;
/** The most that a pipe can be made to hold (/proc/sys/fs/pipe-max-size, as it is set as a rule). */
const MAX_PIPE = 1024 * 1024;
/** Of a kept text; padded, so that a shorter one leaves nothing of a longer one. */
const KEPT_BYTES = 256;
/** What QEMU says when a guest speaks of a port that was unplugged a moment ago. */
const NOISE = /virtio-serial-bus: Unexpected port id/;

export class RunDir implements Disposable {
  readonly path: string;
  readonly #fd: number;
  #open = true;

  constructor(path: string) {
    this.path = resolve(path);
    this.#fd = openSync(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  }

  /** Makes the directory if it is not there, private to the VMM's uid. */
  static make(path: string, uid: number | null): RunDir {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    chmodSync(path, 0o700);
    if (uid !== null) chownSync(path, uid, uid);
    return new RunDir(path);
  }

  /** A path to a file in the directory, good while this object is open. */
  at(name: string): string {
    if (!this.#open) throw new Error(`${this.path} has been let go`);
    return `/proc/self/fd/${this.#fd}/${name}`;
  }

  sockets(): string[] {
    return readdirSync(this.at('.')).filter(name => SOCKET.test(name));
  }

  /** Nothing happens once the directory has been let go. */
  async removeSockets(): Promise<void> {
    if (!this.#open) return;
    for (const name of this.sockets()) await this.remove(name);
  }

  async remove(name: string): Promise<void> {
    try {
      unlinkSync(this.at(name));
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
    }
  }

  /**
   * A connected socket; rejects as connect(2) does. Unlimited wait is impossible: a Unix socket answers at once. The directory is
   * the VMM's own: a link that it puts there must not lead us to somebody else's socket, so what is opened is the socket itself.
   */
  connect(name: string, signal: AbortSignal): Promise<Socket> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const fd = openSync(this.at(name), O_PATH | O_NOFOLLOW);
      if (!fstatSync(fd).isSocket()) {
        closeSync(fd);
        throw new Error(`${name} is no socket`);
      }
      const socket = connect({ path: `/proc/self/fd/${fd}` });
      const onAbort = () => socket.destroy(signal.reason);
      signal.addEventListener('abort', onAbort, { once: true });
      const done = () => {
        closeSync(fd);
        signal.removeEventListener('abort', onAbort);
      };
      socket.once('error', error => {
        done();
        reject(error);
      });
      socket.once('connect', () => {
        done();
        socket.removeAllListeners('error');
        resolve(socket);
      });
    });
  }

  /**
   * Waits until something by that name is there. The kernel tells of it (inotify(7)): to look again and again while a VMM comes up would cost
   * more than the rest of a start. It is looked now and then all the same, for a user may have no watches left.
   */
  async appears(name: string, signal: AbortSignal): Promise<void> {
    const seen = Promise.withResolvers<void>();
    const look = () => {
      if (this.#open && existsSync(this.at(name))) seen.resolve();
    };
    const timer = setInterval(look, LOOK_MS);
    const watcher = this.#watch(changed => changed === name && look());
    try {
      look();
      await raced(seen.promise, signal);
    } finally {
      clearInterval(timer);
      watcher?.close();
    }
  }

  #watch(onChange: (name: string | null) => void): FSWatcher | undefined {
    try {
      return watch(this.at('.'), (_event, name) => onChange(name)).on('error', () => {});
    } catch {
      return undefined;
    }
  }

  /** Gives a file, FIFO or socket that we made to the VMM's uid, which owns the directory. */
  async give(name: string): Promise<void> {
    const { uid, gid } = fstatSync(this.#fd);
    if (uid !== process.getuid?.()) lchownSync(this.at(name), uid, gid);
  }

  /** The descriptor of the FIFO that becomes the VMM's stdout: read and write, so that opening never waits. */
  openConsole(): number {
    return openSync(this.at(CONSOLE_FIFO), O_RDWR | O_NOFOLLOW);
  }

  /** The descriptor of a FIFO's reading end. */
  openReader(name: string): number {
    const fd = openSync(this.at(name), O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
    if (fstatSync(fd).isFIFO()) return fd;
    closeSync(fd);
    throw new Error(`${name} is no named pipe`);
  }

  /** Throws away what lies in a FIFO; at most what a pipe can hold. */
  empty(name: string): void {
    const fd = this.openReader(name);
    const bytes = Buffer.alloc(MAX_PIPE);
    try {
      readSync(fd, bytes);
    } catch {
      // EAGAIN: nothing there
    } finally {
      closeSync(fd);
    }
  }

  /** The descriptor of the file that becomes the VMM's stderr. Appending, so that it can be cut while in use. */
  openLog(): number {
    return openSync(this.at(VMM_LOG), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK, 0o600);
  }

  /** A new empty log for a VMM that opens it by its name. */
  makeOwnLog(): void {
    const fd = openSync(this.at(OWN_LOG), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK, 0o600);
    try {
      const { uid, gid } = fstatSync(this.#fd);
      if (uid !== process.getuid?.()) fchownSync(fd, uid, gid);
    } finally {
      closeSync(fd);
    }
  }

  /** Keeps a short text in a file, in one write. */
  async keep(name: string, text: string): Promise<void> {
    await this.#withFile(name, O_WRONLY | O_CREAT, file => file.write(text.padEnd(KEPT_BYTES), 0));
  }

  /** A text that was kept. */
  kept(name: string): Promise<string | undefined> {
    return this.#withFile(name, O_RDONLY, async file => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(KEPT_BYTES), 0, KEPT_BYTES, 0);
      return buffer.toString('utf8', 0, bytesRead);
    });
  }

  /**
   * Empties the VMM's logs when they take more than 1 MiB of the disk. A guest can make some VMMs talk without end. (One that does not
   * append goes on at its old offset: the file has a hole there.)
   */
  async boundLogs(): Promise<void> {
    for (const name of [VMM_LOG, OWN_LOG]) {
      await this.#withFile(name, O_WRONLY, async file => {
        if ((await file.stat()).blocks * 512 > MAX_LOG_BYTES) await file.truncate(0);
      });
    }
  }

  /** The last lines of the VMM's stderr and log, safe to print. */
  async lastWords(lines = 5): Promise<string[]> {
    const said = [...(await this.#tail(OWN_LOG)), ...(await this.#tail(VMM_LOG))];
    return said.slice(-lines);
  }

  async #tail(name: string): Promise<string[]> {
    const text = await this.#withFile(name, O_RDONLY, async file => {
      const { size } = await file.stat();
      const length = Math.min(size, 8192);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
      return buffer.subarray(0, bytesRead).toString('utf8');
    });
    return (text ?? '')
      .split('\n')
      .map(line => plain(line).trim().slice(0, 500))
      .filter(line => line !== '' && !NOISE.test(line));
  }

  /** Undefined if there is no such file: whatever the VMM has put in its place is left alone. */
  async #withFile<T>(name: string, flags: number, use: (file: FileHandle) => Promise<T>): Promise<T | undefined> {
    const file = await open(this.at(name), flags | O_NOFOLLOW | O_NONBLOCK, 0o600).catch(() => undefined);
    if (file === undefined) return undefined;
    try {
      return (await file.stat()).isFile() ? await use(file) : undefined;
    } finally {
      await file.close();
    }
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#fd);
  }
}
