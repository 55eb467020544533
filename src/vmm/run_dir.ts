/**
 * A VM's run directory, held by a descriptor: paths through it are short (a Unix socket's path ends at 107 bytes,
 * and Node cuts a longer one silently), and nobody can put another directory in its place meanwhile.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { chmod, chown, mkdir, open, readdir, unlink } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { plain } from '../lib/text.ts';

const { O_APPEND, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = constants;

export const QMP_SOCKET = 'qmp.sock';
export const CONSOLE_FIFO = 'console';
export const VMM_LOG = 'vmm.log';

const MAX_LOG_BYTES = 1024 * 1024;
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
  static async make(path: string, uid: number | null): Promise<RunDir> {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await chmod(path, 0o700);
    if (uid !== null) await chown(path, uid, uid);
    return new RunDir(path);
  }

  /** A path to a file in the directory, good while this object is open. */
  at(name: string): string {
    if (!this.#open) throw new Error(`${this.path} has been let go`);
    return `/proc/self/fd/${this.#fd}/${name}`;
  }

  async sockets(): Promise<string[]> {
    return (await readdir(this.at('.'))).filter(name => name.endsWith('.sock'));
  }

  /** Nothing happens once the directory has been let go. */
  async removeSockets(): Promise<void> {
    if (!this.#open) return;
    for (const name of await this.sockets()) await this.remove(name);
  }

  async remove(name: string): Promise<void> {
    await unlink(this.at(name)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
  }

  /** A connected socket; rejects as connect(2) does. Unlimited wait is impossible: a Unix socket answers at once. */
  connect(name: string, signal: AbortSignal): Promise<Socket> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const socket = connect({ path: this.at(name) });
      const onAbort = () => socket.destroy(signal.reason);
      signal.addEventListener('abort', onAbort, { once: true });
      const done = () => signal.removeEventListener('abort', onAbort);
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

  /** The descriptor of the FIFO that becomes the VMM's stdout: read and write, so that opening never waits. */
  openConsole(): number {
    return openSync(this.at(CONSOLE_FIFO), O_RDWR | O_NOFOLLOW);
  }

  /** The descriptor of the file that becomes the VMM's stderr. Appending, so that it can be cut while in use. */
  openLog(): number {
    return openSync(this.at(VMM_LOG), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600);
  }

  /** Empties the VMM's log when it has grown beyond 1 MiB. A guest can make some VMMs talk without end. */
  async boundLog(): Promise<void> {
    const file = await open(this.at(VMM_LOG), O_WRONLY | O_NOFOLLOW);
    try {
      if ((await file.stat()).size > MAX_LOG_BYTES) await file.truncate(0);
    } finally {
      await file.close();
    }
  }

  /** The last lines of the VMM's stderr, safe to print. */
  async lastWords(lines = 5): Promise<string[]> {
    try {
      const file = await open(this.at(VMM_LOG), O_RDONLY | O_NOFOLLOW);
      try {
        const { size } = await file.stat();
        const length = Math.min(size, 8192);
        const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
        const text = buffer.subarray(0, bytesRead).toString('utf8').split('\n');
        return text
          .map(line => plain(line).trim().slice(0, 500))
          .filter(line => line !== '' && !NOISE.test(line))
          .slice(-lines);
      } finally {
        await file.close();
      }
    } catch {
      return [];
    }
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#fd);
  }
}
