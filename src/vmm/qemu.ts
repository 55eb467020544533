/** The `qemu` driver: starts, adopts and finds QEMU machines. */
import type { ChildProcess } from 'node:child_process';
import { dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Accel } from '../api/vm.ts';
import { DeadlineError, raced, sleep, withDeadline } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { isAlive, type ProcRef, procRef } from '../lib/proc.ts';
import { plainStep, type Step } from '../lib/step.ts';
import { Undo } from '../lib/undo.ts';
import { ensureFifo } from './fifo.ts';
import { findVmms } from './find.ts';
import type { HostFacts } from './host_facts.ts';
import type { AdoptOptions, Found, Machine, MachineEnd, MachineSpec, Vmm, VmmFacts } from './machine.ts';
import { gatherFacts, QEMU_PROGRAM } from './qemu_facts.ts';
import { QemuMachine } from './qemu_machine.ts';
import { spawnQemu } from './qemu_spawn.ts';
import { CONSOLE_FIFO, RunDir } from './run_dir.ts';

/** A killed process may still have to give back a lot of memory, or wait for a disk. */
const KILL_MS = 15_000;

export interface QemuOptions {
  host: HostFacts;
  program?: string;
  log: Log;
  step?: Step;
  /** Added to the little that the VMM gets of our environment (PATH, QEMU_*): the rest may hold secrets. */
  env?: Record<string, string>;
  /** How long a new QEMU may take to answer, ms. An emulating, busy host takes seconds. */
  answer_ms?: number;
  /** How long one command may take, ms. */
  command_ms?: number;
  /** How long an adopted one may take before it is taken over unanswering, ms. */
  adopt_ms?: number;
}

export const openQemu = async (options: QemuOptions): Promise<Vmm> => {
  const { host, program = QEMU_PROGRAM } = options;
  const env = { PATH: process.env.PATH, LANG: 'C.UTF-8', ...qemuVariables(), ...options.env };
  const facts = await gatherFacts({ host, program, env });
  return new Qemu({ ...options, program }, env, facts);
};

/** QEMU's own variables, such as QEMU_MODULE_DIR of one that was built by hand. */
const qemuVariables = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('QEMU_')));

/** The VM's id in the arguments of a QEMU; also in those of the `setpriv` that is about to become one. */
export const vmIdOf = (argv: string[]): string | undefined => {
  const id = argv[argv.indexOf('-name') + 1];
  return argv.includes('-qmp') && argv.includes('-name') && /^vm_[0-9a-z]+$/.test(id ?? '') ? id : undefined;
};

const commandMs = ({ command_ms }: QemuOptions) => (command_ms === undefined ? {} : { command_ms });

const endText = (end: MachineEnd): string => {
  const how = end.signal === null ? `with exit code ${end.exit_code}` : `by ${end.signal}`;
  const words = end.last_words.slice(-2).join(' / ');
  return `${how}${words === '' ? '' : `: ${words}`}`.replace(/\.$/, '');
};

class Qemu implements Vmm {
  readonly kind = 'qemu';
  readonly #options: QemuOptions & { program: string };
  readonly #env: NodeJS.ProcessEnv;
  readonly #facts: VmmFacts;
  readonly #step: Step;

  constructor(options: QemuOptions & { program: string }, env: NodeJS.ProcessEnv, facts: VmmFacts) {
    this.#options = options;
    this.#env = env;
    this.#facts = facts;
    this.#step = options.step ?? plainStep;
  }

  facts(): VmmFacts {
    return this.#facts;
  }

  find(run_root: string): Promise<Found[]> {
    return findVmms(run_root, 'qemu', vmIdOf);
  }

  async start(spec: MachineSpec, signal: AbortSignal, onSpawn: (proc: ProcRef) => Promise<void>): Promise<Machine> {
    const { accel, why, hint } = this.#facts;
    if (accel === null) throw new Fault('host', `Cannot start VM ${spec.id}: ${why}.`, { hint });
    const undo = new Undo();
    try {
      signal.throwIfAborted();
      const dir = await RunDir.make(spec.dir, spec.uid);
      undo.push('directory', () => dir[Symbol.dispose]());
      await this.#clearLeftovers(spec, dir);
      await ensureFifo(join(dir.path, CONSOLE_FIFO));
      const child = await this.#step('start.spawn', () => spawnQemu(spec, dir, this.#facts, this.#env));
      const machine = await this.#watch(spec, dir, child, accel, undo);
      await onSpawn(machine.proc);
      await this.#orEnd(spec, machine, this.#bringUp(machine, signal), signal);
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
    const { log } = this.#options;
    if (!(await isAlive(proc))) throw new Fault('vmm', `Cannot adopt the VMM of VM ${id}: it has ended.`);
    const machine = new QemuMachine({
      id,
      dir: new RunDir(options.dir),
      proc,
      accel,
      child: undefined,
      log,
      ...commandMs(this.#options),
    });
    const up = machine.connect(this.#options.adopt_ms ?? 5000, signal);
    try {
      await Promise.race([up, machine.ended]);
    } catch (error) {
      if (signal.aborted) {
        await machine.release();
        throw signal.reason;
      }
      log.warn({ err: error, vm: id }, 'the VMM lives but does not answer: it is adopted and asked again');
      machine.keepTrying();
    }
    return machine;
  }

  /** From here on the process has a keeper: whatever happens, it is ended and waited for. */
  async #watch(spec: MachineSpec, dir: RunDir, child: ChildProcess, accel: Accel, undo: Undo): Promise<QemuMachine> {
    undo.push('process', async () => {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) {
        const exit = new Promise<void>(resolve => child.once('exit', () => resolve()));
        await withDeadline('the end of QEMU', KILL_MS, exit);
      }
      await dir.removeSockets();
    });
    const proc = await procRef(child.pid ?? 0);
    if (proc === undefined) throw new Fault('vmm', `Cannot start VM ${spec.id}: QEMU was gone at once.`);
    const { log } = this.#options;
    const machine = new QemuMachine({
      id: spec.id,
      dir,
      proc,
      accel,
      child,
      log,
      ...commandMs(this.#options),
    });
    undo.push('machine', async () => {
      child.kill('SIGKILL');
      await withDeadline('the end of QEMU', KILL_MS, machine.ended);
    });
    return machine;
  }

  async #bringUp(machine: QemuMachine, signal: AbortSignal): Promise<void> {
    await this.#step('start.answer', () => machine.connect(this.#options.answer_ms ?? 20_000, signal));
    await this.#step('start.cont', () => raced(machine.resume(), signal));
  }

  async #orEnd(spec: MachineSpec, machine: QemuMachine, up: Promise<void>, signal: AbortSignal): Promise<void> {
    const dead = machine.ended.then(end => {
      // 126 and 127 are setpriv's own: it could not run the program
      const missing = spec.uid !== null && (end.exit_code === 126 || end.exit_code === 127);
      throw new Fault(missing ? 'host' : 'vmm', `Cannot start VM ${spec.id}: QEMU ended at once ${endText(end)}.`);
    });
    dead.catch(() => {});
    try {
      await Promise.race([up, dead]);
    } catch (error) {
      signal.throwIfAborted();
      // A VMM that is dying drops its sockets first: its exit says more.
      if (!(error instanceof DeadlineError)) await Promise.race([dead, sleep(200)]);
      if (error instanceof Fault) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw new Fault('vmm', `Cannot start VM ${spec.id}: ${why}.`, { cause: error });
    }
  }

  /** Sockets of a dead VMM go; those of a living one are proof that it must not be started a second time. */
  async #clearLeftovers(spec: MachineSpec, dir: RunDir): Promise<void> {
    if ((await dir.sockets()).length === 0) return;
    const living = (await this.find(dirname(dir.path))).find(found => found.dir === dir.path);
    if (living !== undefined) {
      const { pid } = living.proc;
      throw new Fault('bad_state', `Cannot start VM ${spec.id}: its VMM still runs as process ${pid}.`);
    }
    await dir.removeSockets();
  }
}
