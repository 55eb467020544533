/**
 * A running Firecracker process, started or adopted.
 *
 * Its own pause ends the guest's connections for good (1.16.1), so a pause is SIGSTOP: its API is silent meanwhile, and
 * nothing here asks it then.
 *
 * INVARIANTS: `ended` settles once, after the process is gone, its last metrics are read and its sockets are removed. After
 * `release` or the end nothing here holds a socket, a timer or a descriptor.
 */
import type { Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import type { Accel } from '../api/vm.ts';
import { DeadlineError, poll, sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { isAlive, type ProcRef, procStat, signalProc } from '../lib/proc.ts';
import { usageOfProc } from '../lib/usage.ts';
import type { HeldMachine, Parts } from './driver.ts';
import { type Exit, watchEnd } from './end.ts';
import { instanceId } from './find.ts';
import { AnswerError, ApiError, FirecrackerApi, REQUEST_MS } from './firecracker_api.ts';
import { driveId, type Put } from './firecracker_config.ts';
import type { MachineEnd, MachineUsage } from './machine.ts';
import { Metrics } from './metrics.ts';
import { API_SOCKET, COUNTED, METRICS_FIFO, type RunDir, VSOCK_SOCKET } from './run_dir.ts';
import { dialGuest, VsockError } from './vsock.ts';
import { VsockEgress } from './vsock_egress.ts';

/** Of the guest, and of the host for the guest: docs/guest-protocol.md. */
const CONTROL_PORT = 1024;
const EGRESS_PORT = 1025;
/** A guest that listens answers in milliseconds; Firecracker itself gives up after two seconds. */
const CONNECT_MS = 3000;
/** The start reads kernel and initramfs, from a disk that may be slow: so many times as long as another request. */
const GO_TIMES = 6;
/** Signals reach a stopped or busy process late, never this late. */
const STOP_MS = 5000;
const LOOK_MS = 3;
const FLUSH_EVERY_MS = 1000;
const FLUSH_MS = 1000;

const Config = z.looseObject({ drives: z.array(z.looseObject({ drive_id: z.string(), path_on_host: z.string() })) });
const Instance = z.looseObject({ id: z.string(), state: z.string() });

export class FirecrackerMachine implements HeldMachine {
  readonly kind = 'firecracker';
  readonly accel: Accel;
  readonly proc: ProcRef;
  readonly cgroup: string | null;
  readonly api_socket: string;
  readonly ended: Promise<MachineEnd>;
  readonly #id: string;
  readonly #dir: RunDir;
  readonly #log: Log;
  readonly #api: FirecrackerApi;
  readonly #egress: VsockEgress;
  readonly #metrics: Metrics | undefined;
  readonly #control = new Set<Socket>();
  readonly #released = new AbortController();
  readonly #go_ms: number;
  #flushed = Number.NEGATIVE_INFINITY;

  constructor({ id, dir, proc, cgroup, accel, child, log, command_ms }: Parts) {
    this.#id = id;
    this.#dir = dir;
    this.api_socket = join(dir.path, API_SOCKET);
    this.proc = proc;
    this.cgroup = cgroup;
    this.accel = accel;
    this.#log = log.child({ vm: id });
    this.#api = new FirecrackerApi(signal => dir.connect(API_SOCKET, signal), command_ms);
    this.#go_ms = GO_TIMES * (command_ms ?? REQUEST_MS);
    this.#egress = new VsockEgress(dir, EGRESS_PORT, this.#log);
    this.#metrics = this.#openMetrics();
    this.ended = watchEnd({
      proc,
      child,
      dir,
      cgroup,
      log: this.#log,
      released: this.#released.signal,
      lastSigns: async exit => this.#lastSigns(exit),
      close: () => this.#close(),
    });
  }

  /** Waits until it takes orders, and gives it all but the start. */
  async configure(puts: readonly Put[], ms: number, signal: AbortSignal): Promise<void> {
    await this.#untilItListens(ms, signal);
    for (const { path, body } of puts) await this.#api.put(path, body, signal);
    await this.#egress.listen();
  }

  async go(signal: AbortSignal): Promise<void> {
    await this.#api.put('/actions', { action_type: 'InstanceStart' }, signal, this.#go_ms);
  }

  async takeOver(ms: number, signal: AbortSignal): Promise<void> {
    await this.#egress.listen();
    if (await this.paused()) return;
    const limit = AbortSignal.any([AbortSignal.timeout(ms), signal]);
    const { id } = Instance.parse(await this.#api.get('/', limit));
    if (id !== instanceId(this.#id)) throw new AnswerError(`the API answers for '${id}'`);
  }

  async openControl(signal: AbortSignal): Promise<Duplex> {
    const both = AbortSignal.any([signal, this.#released.signal]);
    try {
      both.throwIfAborted();
      const socket = await this.#dir.connect(VSOCK_SOCKET, both).catch(error => {
        both.throwIfAborted();
        throw new VsockError('absent', `its vsock cannot be reached: ${error.message}`, error);
      });
      // one that nobody reads would not see the end of the VMM
      this.#control.add(socket.once('close', () => this.#control.delete(socket)));
      return await dialGuest(socket, CONTROL_PORT, CONNECT_MS, both);
    } catch (error) {
      signal.throwIfAborted();
      throw this.#fault('connect to the guest of', error);
    }
  }

  onEgress(handler: (stream: Duplex) => void): void {
    this.#egress.onStream(handler);
  }

  async pause(): Promise<void> {
    await this.#stopOrGo('pause', 'SIGSTOP', true);
  }

  async resume(): Promise<void> {
    await this.#stopOrGo('resume', 'SIGCONT', false);
  }

  async paused(): Promise<boolean> {
    const stat = await procStat(this.proc.pid);
    return stat?.start_ticks === this.proc.start_ticks && stat.state === 'T';
  }

  /** Only x86 has the keyboard. */
  async ctrlAltDel(): Promise<boolean> {
    if (process.arch !== 'x64') return false;
    try {
      await this.#api.put('/actions', { action_type: 'SendCtrlAltDel' });
      return true;
    } catch (error) {
      throw this.#fault('press Ctrl-Alt-Del in', error);
    }
  }

  async usage(): Promise<MachineUsage> {
    await this.#metrics?.loaded;
    await this.#flush();
    const used = await usageOfProc(this.proc, this.cgroup);
    if (used === undefined) throw this.#fault('ask for the usage of', new Error('it has ended'));
    const { disk_read_bytes = null, disk_write_bytes = null } = this.#metrics?.counters ?? {};
    return { ...used, disk_read_bytes, disk_write_bytes };
  }

  /** It looks at its file anew, under the name by which it knows it. */
  async resizeDisk(index: number): Promise<void> {
    const drive_id = driveId(index);
    try {
      const { drives } = Config.parse(await this.#api.get('/vm/config'));
      const drive = drives.find(one => one.drive_id === drive_id);
      if (drive === undefined) throw new AnswerError(`it has no drive '${drive_id}'`);
      await this.#api.patch(`/drives/${drive_id}`, { drive_id, path_on_host: drive.path_on_host });
    } catch (error) {
      throw this.#fault('resize a disk of', error);
    }
  }

  /** A stopped process takes SIGTERM when it goes on: it is let go on, and dies before it does anything. */
  async signal(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await signalProc(this.proc, signal);
    if (signal === 'SIGTERM') await signalProc(this.proc, 'SIGCONT');
  }

  async release(): Promise<void> {
    this.#close();
    this.#dir[Symbol.dispose]();
  }

  #openMetrics(): Metrics | undefined {
    try {
      const dir = this.#dir;
      return new Metrics({
        fd: dir.openReader(METRICS_FIFO),
        load: () => dir.kept(COUNTED),
        keep: text => dir.keep(COUNTED, text),
      });
    } catch (error) {
      this.#log.warn({ err: error }, 'the metrics of Firecracker cannot be read');
      return undefined;
    }
  }

  async #untilItListens(ms: number, signal: AbortSignal): Promise<void> {
    const what = 'the answer of Firecracker';
    const both = AbortSignal.any([signal, this.#released.signal]);
    const up = async () => {
      await this.#dir.appears(API_SOCKET, both);
      await poll(what, ms, () => this.#listens(both), { every_ms: LOOK_MS, signal: both });
    };
    await withDeadline(what, ms, up());
  }

  /** The socket is there a moment before anybody listens on it. */
  async #listens(signal: AbortSignal): Promise<true | undefined> {
    const socket = await this.#dir.connect(API_SOCKET, signal).catch(() => undefined);
    socket?.destroy();
    return socket && true;
  }

  async #stopOrGo(verb: string, signal: 'SIGSTOP' | 'SIGCONT', paused: boolean): Promise<void> {
    try {
      await signalProc(this.proc, signal);
      await poll('the process', STOP_MS, async () => {
        if (!(await isAlive(this.proc))) throw new Error('it has ended');
        return (await this.paused()) === paused || undefined;
      });
    } catch (error) {
      throw this.#fault(verb, error);
    }
  }

  /** Lets it say what it has counted; one that does not is asked again later. */
  async #flush(): Promise<void> {
    const now = performance.now();
    if (this.#metrics === undefined || now - this.#flushed < FLUSH_EVERY_MS || (await this.paused())) return;
    this.#flushed = now;
    const { next } = this.#metrics;
    const limit = AbortSignal.timeout(FLUSH_MS);
    try {
      await this.#api.put('/actions', { action_type: 'FlushMetrics' }, limit);
      await Promise.race([next, sleep(FLUSH_MS, undefined, { signal: limit })]);
    } catch (error) {
      this.#log.debug({ err: error }, 'Firecracker did not tell its metrics');
    }
  }

  /** Its last metrics tell a reset even where the exit status cannot be had, or where a processor failed on the way down. */
  #lastSigns({ exit_code }: Exit): Pick<MachineEnd, 'guest_reset' | 'guest_panicked'> {
    this.#metrics?.drain();
    return { guest_reset: exit_code === 0 || (this.#metrics?.counters?.resets ?? 0) > 0, guest_panicked: false };
  }

  #fault(verb: string, error: unknown): Fault {
    if (error instanceof Fault) return error;
    const ended = this.#released.signal.aborted;
    const known =
      error instanceof ApiError ||
      error instanceof AnswerError ||
      error instanceof DeadlineError ||
      error instanceof VsockError;
    const why = ended ? 'it has ended or was let go' : known ? error.message : 'its control socket is gone';
    const guest = !ended && error instanceof VsockError && (error.failure === 'nobody' || error.failure === 'silent');
    return new Fault(guest ? 'guest' : 'vmm', `Cannot ${verb} VM ${this.#id}: ${why}.`, { cause: error });
  }

  #close(): void {
    this.#released.abort(new Error('the machine has been let go'));
    for (const socket of this.#control) socket.destroy();
    this.#egress.close();
    this.#metrics?.close();
    this.#api.close();
  }
}
