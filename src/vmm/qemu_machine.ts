/**
 * A running QEMU process, started or adopted.
 *
 * INVARIANTS: `ended` settles once, after the process is gone, its last control messages are read and its sockets are
 * removed. After `release` or the end nothing here holds a socket, a timer or a descriptor.
 */
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import type { Accel } from '../api/vm.ts';
import { DeadlineError, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { type ProcRef, signalProc } from '../lib/proc.ts';
import { usageOfProc } from '../lib/usage.ts';
import type { HeldMachine, Parts } from './driver.ts';
import { Egress } from './egress.ts';
import { type Exit, watchEnd } from './end.ts';
import type { MachineEnd, MachineUsage } from './machine.ts';
import { Ports } from './ports.ts';
import { diskName } from './qemu_args.ts';
import { COMMAND_MS, type Qmp, QmpError, type QmpEvent } from './qmp.ts';
import { QmpLink } from './qmp_link.ts';
import { QMP_SOCKET, type RunDir } from './run_dir.ts';

/** What QEMU said just before its end is read for this long. */
const DRAIN_MS = 2000;

const BlockStats = z.array(z.looseObject({ stats: z.looseObject({ rd_bytes: z.int(), wr_bytes: z.int() }) }));
const Status = z.looseObject({ status: z.string() });

export class QemuMachine implements HeldMachine {
  readonly kind = 'qemu';
  readonly accel: Accel;
  readonly proc: ProcRef;
  readonly cgroup: string | null;
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

  constructor(options: Parts) {
    const { id, dir, proc, cgroup, accel, child } = options;
    this.#id = id;
    this.#dir = dir;
    this.api_socket = join(dir.path, QMP_SOCKET);
    this.proc = proc;
    this.cgroup = cgroup;
    this.accel = accel;
    this.#log = options.log.child({ vm: id });
    this.#ports = new Ports({
      command: (command, args, ms) => this.#link.command(command, args, ms),
      connect: (name, signal) => dir.connect(name, signal),
      remove: name => dir.remove(name),
      log: this.#log,
    });
    this.#link = new QmpLink({
      connect: async signal => {
        await dir.appears(QMP_SOCKET, signal);
        return dir.connect(QMP_SOCKET, signal);
      },
      onEvent: event => this.#onEvent(event),
      onUp: qmp => this.#onUp(qmp),
      log: this.#log,
      command_ms: options.command_ms ?? COMMAND_MS,
    });
    this.#egress = new Egress(this.#ports, this.#log);
    this.ended = watchEnd({
      proc,
      child,
      dir,
      cgroup,
      log: this.#log,
      released: this.#released.signal,
      lastSigns: exit => this.#lastSigns(exit),
      close: () => this.#close(),
    });
  }

  /** Waits until QEMU has answered and the egress port is plugged. */
  async connect(ms: number, signal: AbortSignal): Promise<void> {
    const end = performance.now() + ms;
    await this.#link.up(ms, signal);
    const plugged = this.#egress.start();
    await withDeadline('plugging the egress port', Math.max(1, end - performance.now()), plugged, signal);
  }

  async takeOver(ms: number, signal: AbortSignal): Promise<void> {
    try {
      await this.connect(ms, signal);
    } catch (error) {
      // the waiting is given up, not the trying: the channels come when QEMU answers
      if (!signal.aborted) this.#egress.start().catch(() => {});
      throw error;
    }
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
    const used = await usageOfProc(this.proc, this.cgroup);
    if (used === undefined) throw this.#fault('ask for the usage of', new Error('it has ended'));
    const answer = await this.#say('ask for the usage of', 'query-blockstats');
    const stats = BlockStats.parse(answer);
    const sum = (field: 'rd_bytes' | 'wr_bytes') => stats.reduce((bytes, { stats: s }) => bytes + s[field], 0);
    return { ...used, disk_read_bytes: sum('rd_bytes'), disk_write_bytes: sum('wr_bytes') };
  }

  async resizeDisk(index: number, size_bytes: number): Promise<void> {
    await this.#say('resize a disk of', 'block_resize', { 'node-name': diskName(index), size: size_bytes });
  }

  async signal(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await signalProc(this.proc, signal);
  }

  async release(): Promise<void> {
    this.#released.abort();
    this.#close();
    this.#dir[Symbol.dispose]();
  }

  async #say(verb: string, command: string, args?: Record<string, unknown>): Promise<unknown> {
    try {
      return await this.#link.command(command, args);
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

  /**
   * The event of a reset is lost where a command of ours met the closed socket before it was read. Under `-no-reboot` QEMU ends with 0
   * on a reset and on a signal alone, and of a signal it tells.
   */
  async #lastSigns({ exit_code }: Exit): Promise<Pick<MachineEnd, 'guest_reset' | 'guest_panicked'>> {
    await withDeadline('the last events of QEMU', DRAIN_MS, this.#link.drained()).catch(() => {});
    const silent = async () => !(await this.#dir.lastWords()).some(line => line.includes('terminating on signal'));
    const guest_reset = this.#guest_reset || (exit_code === 0 && (await silent()));
    return { guest_reset, guest_panicked: this.#guest_panicked };
  }

  #close(): void {
    this.#released.abort();
    this.#egress.close();
    this.#ports.close();
    this.#link.close();
  }
}
