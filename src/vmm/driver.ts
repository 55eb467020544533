/**
 * What is the same for every VMM: how one is asked for, started, adopted and found, and how a start is undone.
 *
 * INVARIANTS: from the spawn on the process has a keeper: whatever happens, it is ended and waited for. A process is
 * told to `onSpawn` before its guest runs. Leftovers are removed only when no VMM of any kind lives in the directory.
 */
import type { ChildProcess } from 'node:child_process';
import { dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Accel, VmmKind } from '../api/vm.ts';
import { type Cgroups, cgroupNamed, removeCgroup } from '../lib/cgroup.ts';
import { DeadlineError, sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { isAlive, type ProcRef, procRef } from '../lib/proc.ts';
import { plainStep, type Step } from '../lib/step.ts';
import { Undo } from '../lib/undo.ts';
import { ensureFifos } from './fifo.ts';
import { findVmms } from './find.ts';
import type { AdoptOptions, Found, Machine, MachineEnd, MachineSpec, Vmm, VmmFacts } from './machine.ts';
import { CONSOLE_FIFO, METRICS_FIFO, RunDir } from './run_dir.ts';

/** A killed process may still have to give back a lot of memory, or wait for a disk. */
const KILL_MS = 15_000;
const ADOPT_MS = 5000;
/** From the loss of its sockets to the end of a VMM that is dying. */
const DYING_MS = 200;
/** From the end of a process to what it said last. */
const END_MS = 10_000;

export interface DriverOptions {
  log: Log;
  step?: Step;
  /** Where VMMs get groups of their own; default: nowhere. */
  cgroups?: Cgroups | undefined;
  /** How long a new VMM may take to answer, ms. An emulating, busy host takes seconds. */
  answer_ms?: number;
  /** How long one command may take, ms. */
  command_ms?: number;
  /** How long an adopted one may take before it is taken over unanswering, ms. */
  adopt_ms?: number;
}

/** What a machine is made of. */
export interface Parts {
  id: string;
  dir: RunDir;
  proc: ProcRef;
  cgroup: string | null;
  accel: Accel;
  /** Only where we are the parent. */
  child: ChildProcess | undefined;
  log: Log;
  command_ms?: number;
}

export interface HeldMachine extends Machine {
  /** Connects to an adopted VMM. If that fails, it is tried again for as long as the machine is held. */
  takeOver(ms: number, signal: AbortSignal): Promise<void>;
}

export interface Spawned<M extends HeldMachine> {
  child: ChildProcess;
  /** From the spawn to a VMM that has answered and knows its machine. */
  answer(machine: M, signal: AbortSignal): Promise<void>;
  /** Lets the guest run. */
  go(machine: M, signal: AbortSignal): Promise<void>;
}

export interface Spawn {
  dir: RunDir;
  facts: VmmFacts;
  accel: Accel;
  cgroup: string | null;
}

/** What one VMM does its own way. */
export interface Maker<M extends HeldMachine> {
  kind: VmmKind;
  /** The VMM as people call it. */
  name: string;
  ask(): Promise<VmmFacts>;
  spawn(spec: MachineSpec, how: Spawn): Promise<Spawned<M>>;
  hold(parts: Parts): M;
}

const endText = (end: MachineEnd): string => {
  const how = end.signal === null ? `with exit code ${end.exit_code}` : `by ${end.signal}`;
  const words = end.last_words.slice(-2).join(' / ');
  return `${how}${words === '' ? '' : `: ${words}`}`.replace(/\.$/, '');
};

export class Driver<M extends HeldMachine> implements Vmm {
  readonly kind: VmmKind;
  readonly #maker: Maker<M>;
  readonly #options: DriverOptions;
  readonly #step: Step;
  #facts: VmmFacts;

  private constructor(maker: Maker<M>, options: DriverOptions, facts: VmmFacts) {
    this.kind = maker.kind;
    this.#maker = maker;
    this.#options = options;
    this.#step = options.step ?? plainStep;
    this.#facts = facts;
  }

  static async open<M extends HeldMachine>(maker: Maker<M>, options: DriverOptions): Promise<Vmm> {
    return new Driver(maker, options, await maker.ask());
  }

  facts(): VmmFacts {
    return this.#facts;
  }

  async refresh(): Promise<VmmFacts> {
    this.#facts = await this.#maker.ask();
    return this.#facts;
  }

  find(run_root: string): Promise<Found[]> {
    return findVmms(run_root).then(all => all.filter(found => found.kind === this.kind));
  }

  async start(spec: MachineSpec, signal: AbortSignal, onSpawn: (proc: ProcRef) => Promise<void>): Promise<Machine> {
    const { accel, why, hint } = this.#facts;
    if (accel === null) throw new Fault('host', `Cannot start VM ${spec.id}: ${why}.`, { hint });
    const undo = new Undo();
    try {
      signal.throwIfAborted();
      const dir = RunDir.make(spec.dir, spec.uid);
      undo.push('directory', () => dir[Symbol.dispose]());
      await this.#clearLeftovers(spec, dir);
      await ensureFifos([CONSOLE_FIFO, METRICS_FIFO].map(name => join(dir.path, name)));
      let cgroup: string | null = null;
      const spawned = await this.#step('start.spawn', async () => {
        cgroup = (await this.#options.cgroups?.make(spec.id)) ?? null;
        undo.push('group', async () => void (cgroup !== null && (await removeCgroup(cgroup))));
        return this.#maker.spawn(spec, { dir, facts: this.#facts, accel, cgroup });
      });
      const machine = await this.#watch(spec, { dir, accel, cgroup }, spawned.child, undo);
      await onSpawn(machine.proc);
      await this.#orEnd(spec, machine, this.#bringUp(spawned, machine, signal), signal);
      undo.commit();
      return machine;
    } catch (error) {
      await undo.unwind((name, err) =>
        this.#options.log.error({ err, vm: spec.id, step: name }, 'could not be undone'),
      );
      throw error;
    }
  }

  async adopt(options: AdoptOptions, signal: AbortSignal): Promise<Machine> {
    const { id, proc, accel } = options;
    const { log, adopt_ms = ADOPT_MS } = this.#options;
    if (!(await isAlive(proc))) throw new Fault('vmm', `Cannot adopt the VMM of VM ${id}: it has ended.`);
    const cgroup = await cgroupNamed(proc.pid, id);
    const machine = this.#hold({ id, dir: new RunDir(options.dir), proc, cgroup, accel, child: undefined });
    try {
      await Promise.race([machine.takeOver(adopt_ms, signal), machine.ended]);
    } catch (error) {
      if (signal.aborted) {
        await machine.release();
        throw signal.reason;
      }
      log.warn({ err: error, vm: id }, 'the VMM lives but does not answer: it is adopted and asked again');
    }
    return machine;
  }

  #hold(parts: Omit<Parts, 'log' | 'command_ms'>): M {
    const { log, command_ms } = this.#options;
    return this.#maker.hold({ ...parts, log, ...(command_ms === undefined ? {} : { command_ms }) });
  }

  async #watch(
    spec: MachineSpec,
    { dir, accel, cgroup }: Pick<Parts, 'dir' | 'accel' | 'cgroup'>,
    child: ChildProcess,
    undo: Undo,
  ): Promise<M> {
    const { name } = this.#maker;
    undo.push('process', async () => {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) {
        const exit = new Promise<void>(resolve => child.once('exit', () => resolve()));
        await withDeadline(`the end of ${name}`, KILL_MS, exit);
      }
      await dir.removeSockets();
    });
    const proc = await procRef(child.pid ?? 0);
    if (proc === undefined) throw new Fault('vmm', `Cannot start VM ${spec.id}: ${name} was gone at once.`);
    const machine = this.#hold({ id: spec.id, dir, proc, cgroup, accel, child });
    undo.push('machine', async () => {
      child.kill('SIGKILL');
      await withDeadline(`the end of ${name}`, KILL_MS, machine.ended);
    });
    return machine;
  }

  async #bringUp(spawned: Spawned<M>, machine: M, signal: AbortSignal): Promise<void> {
    await this.#step('start.answer', () => spawned.answer(machine, signal));
    await this.#step('start.cont', () => spawned.go(machine, signal));
  }

  async #orEnd(spec: MachineSpec, machine: M, up: Promise<void>, signal: AbortSignal): Promise<void> {
    const dead = machine.ended.then(end => {
      // 126 and 127 are those of the programs before it: they could not run it
      const missing = end.exit_code === 126 || end.exit_code === 127;
      const what = `${this.#maker.name} ended at once ${endText(end)}`;
      throw new Fault(missing ? 'host' : 'vmm', `Cannot start VM ${spec.id}: ${what}.`);
    });
    dead.catch(() => {});
    try {
      await Promise.race([up, dead]);
    } catch (error) {
      signal.throwIfAborted();
      // A VMM that is dying drops its sockets first: its exit says more.
      if (!(error instanceof DeadlineError)) await Promise.race([dead, sleep(DYING_MS)]);
      if (!(await isAlive(machine.proc))) await Promise.race([dead, sleep(END_MS)]);
      if (error instanceof Fault) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw new Fault('vmm', `Cannot start VM ${spec.id}: ${why}.`, { cause: error });
    }
  }

  /** Sockets of a dead VMM go; those of a living one are proof that it must not be started a second time. */
  async #clearLeftovers(spec: MachineSpec, dir: RunDir): Promise<void> {
    if (dir.sockets().length === 0) return;
    const living = (await findVmms(dirname(dir.path))).find(found => found.dir === dir.path);
    if (living !== undefined) {
      const { pid } = living.proc;
      throw new Fault('bad_state', `Cannot start VM ${spec.id}: its VMM still runs as process ${pid}.`);
    }
    await dir.removeSockets();
  }
}
