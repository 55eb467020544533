/**
 * A running QEMU process, started or adopted.
 *
 * INVARIANTS: `ended` settles once, after the process is gone, its last control messages are read and its sockets are
 * removed. After `release` or the end nothing here holds a socket, a timer or a descriptor.
 */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import type { Accel } from '../api/vm.ts';
import { DeadlineError, sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { isAlive, type ProcRef, signalProc } from '../lib/proc.ts';
import { procUsage } from '../lib/usage.ts';
import { Egress } from './egress.ts';
import type { Machine, MachineEnd, MachineUsage } from './machine.ts';
import { Ports } from './ports.ts';
import { COMMAND_MS, type Qmp, QmpError, type QmpEvent } from './qmp.ts';
import { QmpLink } from './qmp_link.ts';
import { QMP_SOCKET, type RunDir } from './run_dir.ts';

/** An adopted process leaves no exit event: /proc is asked this often. */
const POLL_MS = 100;
const LOG_CHECK_MS = 10_000;
/** What QEMU said just before its end is read for this long. */
const DRAIN_MS = 2000;

const BlockStats = z.array(z.looseObject({ stats: z.looseObject({ rd_bytes: z.int(), wr_bytes: z.int() }) }));
const Status = z.looseObject({ status: z.string() });

export interface QemuMachineOptions {
  id: string;
  dir: RunDir;
  proc: ProcRef;
  accel: Accel;
  /** Only where we are the parent. */
  child: ChildProcess | undefined;
  log: Log;
  command_ms?: number;
}

export class QemuMachine implements Machine {
  readonly kind = 'qemu';
  readonly accel: Accel;
  readonly proc: ProcRef;
  readonly api_socket: string;
  readonly ended: Promise<MachineEnd>;
  readonly #id: string;
  readonly #dir: RunDir;
  readonly #log: Log;
  readonly #link: QmpLink;
  readonly #ports: Ports;
  readonly #egress: Egress;
  readonly #released = new AbortController();
  #guest_reset = false;
  #guest_panicked = false;

  constructor(options: QemuMachineOptions) {
    const { id, dir, proc, accel, child } = options;
    this.#id = id;
    this.#dir = dir;
    this.api_socket = join(dir.path, QMP_SOCKET);
    this.proc = proc;
    this.accel = accel;
    this.#log = options.log.child({ vm: id });
    this.#ports = new Ports({
      command: (command, args, ms) => this.#link.command(command, args, ms),
      connect: (name, signal) => dir.connect(name, signal),
      remove: name => dir.remove(name),
      log: this.#log,
    });
    this.#link = new QmpLink({
      connect: signal => dir.connect(QMP_SOCKET, signal),
      onEvent: event => this.#onEvent(event),
      onUp: qmp => this.#onUp(qmp),
      log: this.#log,
      command_ms: options.command_ms ?? COMMAND_MS,
    });
    this.#egress = new Egress(this.#ports, this.#log);
    this.ended = this.#watch(child);
    void this.#boundLog();
  }

  /** Waits until QEMU has answered and the egress port is plugged. */
  async connect(ms: number, signal: AbortSignal): Promise<void> {
    const end = performance.now() + ms;
    await this.#link.up(ms, signal);
    const plugged = this.#egress.start();
    await withDeadline('plugging the egress port', Math.max(1, end - performance.now()), plugged, signal);
  }

  /** Gives up waiting, not trying: the channels come when QEMU answers. */
  keepTrying(): void {
    this.#egress.start().catch(() => {});
  }

  async openControl(signal: AbortSignal): Promise<Duplex> {
    try {
      return (await this.#ports.open('control', signal)).socket;
    } catch (error) {
      signal.throwIfAborted();
      throw this.#fault('connect to the guest of', error);
    }
  }

  onEgress(handler: (stream: Duplex) => void): void {
    this.#egress.onStream(handler);
  }

  async pause(): Promise<void> {
    await this.#say('pause', 'stop');
  }

  async resume(): Promise<void> {
    await this.#say('resume', 'cont');
  }

  async paused(): Promise<boolean> {
    return Status.parse(await this.#say('ask for the state of', 'query-status')).status === 'paused';
  }

  /** The microvm machine has no keyboard controller. */
  async ctrlAltDel(): Promise<boolean> {
    return false;
  }

  async usage(): Promise<MachineUsage> {
    const used = await procUsage(this.proc);
    if (used === undefined) throw this.#fault('ask for the usage of', new Error('it has ended'));
    const answer = await this.#say('ask for the usage of', 'query-blockstats');
    const stats = BlockStats.parse(answer);
    const sum = (field: 'rd_bytes' | 'wr_bytes') => stats.reduce((bytes, { stats: s }) => bytes + s[field], 0);
    return { ...used, disk_read_bytes: sum('rd_bytes'), disk_write_bytes: sum('wr_bytes') };
  }

  async signal(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await signalProc(this.proc, signal);
  }

  async release(): Promise<void> {
    this.#released.abort();
    this.#close();
    this.#dir[Symbol.dispose]();
  }

  async #say(verb: string, command: string): Promise<unknown> {
    try {
      return await this.#link.command(command);
    } catch (error) {
      throw this.#fault(verb, error);
    }
  }

  #fault(verb: string, error: unknown): Fault {
    if (error instanceof Fault) return error;
    const said = error instanceof QmpError || error instanceof DeadlineError;
    const why = said ? error.message : 'its control socket is gone';
    return new Fault('vmm', `Cannot ${verb} VM ${this.#id}: ${why}.`, { cause: error });
  }

  #onEvent(event: QmpEvent): void {
    if (event.event === 'SHUTDOWN' && event.data.guest === true) this.#guest_reset = true;
    if (event.event === 'GUEST_PANICKED' || event.data.reason === 'guest-panic') this.#guest_panicked = true;
    this.#ports.onEvent(event);
  }

  async #onUp(qmp: Qmp): Promise<void> {
    await this.#ports.sweep(qmp);
  }

  async #watch(child: ChildProcess | undefined): Promise<MachineEnd> {
    const { exit_code, signal } = child === undefined ? await this.#watchProc() : await exitOf(child);
    if (this.#released.signal.aborted) return new Promise(() => {});
    await withDeadline('the last events of QEMU', DRAIN_MS, this.#link.drained()).catch(() => {});
    this.#close();
    const last_words = await this.#dir.lastWords();
    await this.#dir.removeSockets().catch(error => this.#log.warn({ err: error }, 'sockets could not be removed'));
    this.#dir[Symbol.dispose]();
    const seen = { guest_reset: this.#guest_reset, guest_panicked: this.#guest_panicked };
    return { exit_code, signal, known: child !== undefined, ...seen, last_words };
  }

  async #watchProc(): Promise<{ exit_code: null; signal: null }> {
    const { signal } = this.#released;
    while (!signal.aborted && (await isAlive(this.proc))) await sleep(POLL_MS, undefined, { signal }).catch(() => {});
    return { exit_code: null, signal: null };
  }

  async #boundLog(): Promise<void> {
    const { signal } = this.#released;
    for (;;) {
      await sleep(LOG_CHECK_MS, undefined, { signal, ref: false }).catch(() => {});
      if (signal.aborted) return;
      await this.#dir.boundLog().catch(() => {});
    }
  }

  #close(): void {
    this.#released.abort();
    this.#egress.close();
    this.#ports.close();
    this.#link.close();
  }
}

const exitOf = (child: ChildProcess): Promise<{ exit_code: number | null; signal: string | null }> =>
  new Promise(resolve => {
    if (child.exitCode !== null || child.signalCode !== null) {
      resolve({ exit_code: child.exitCode, signal: child.signalCode });
    }
    child.once('exit', (exit_code, signal) => resolve({ exit_code, signal }));
  });
