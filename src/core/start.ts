/** The story of a start: docs/architecture.md, "A VM's life". */
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';
import { poll, raced, withDeadline } from '../lib/deadline.ts';
import { ensureDir } from '../lib/files.ts';
import { Undo } from '../lib/undo.ts';
import type { VmPatch, VmRecord } from '../store/store.ts';
import { openConsole } from '../vmm/console.ts';
import { type Assets, admitAssets } from './admission.ts';
import { admit, lockVm, named, needVm, publicVm } from './find.ts';
import type { Host, Live, StartTimes } from './host.ts';
import { initrdFor } from './initrd.ts';
import { insist } from './insist.ts';
import { keepSoon } from './keepers.ts';
import { diskFull } from './land.ts';
import { forget, guestProvisioned, guestReady, hold, letGo } from './live.ts';
import { moveVm } from './move.ts';
import { assetDir, consoleLog, runDir } from './paths.ts';
import { provisionAtStart, refuseUngiven } from './provision.ts';
import { afterEnd, NOT_OWED } from './restarts.ts';

/** From SIGKILL to the end of a VMM whose start is undone. */
const KILL_MS = 10_000;
const END_STORED_MS = 5000;
/** From the end of a VMM to its going from the process table. */
const GONE_MS = 2000;

export interface StartOptions {
  wait: 'ready' | 'running' | 'none';
  timeout_ms: number;
  actor: string;
}

/** Starts a VM. Faults: see the operation `vm.start`. */
export const startVm = async (host: Host, ref: string, options: StartOptions): Promise<Vm> => {
  const { id, name } = await needVm(host, ref);
  const begun = Promise.withResolvers<void>();
  const launched = startLocked(host, id, options.actor, () => begun.resolve());
  return answered(host, { id, name }, { launched, begun: begun.promise }, options);
};

const startLocked = async (host: Host, id: string, actor: string, onStarting: () => void): Promise<Live> => {
  const asked = performance.now();
  await using held = await lockVm(host, { id }, 'start');
  const vm = await needVm(host, id);
  admit(vm, 'start');
  using assets = await host.step('start.admit', () => admitAssets(host, vm));
  const { signal } = held;
  return await launch(host, vm, assets, { asked, actor, why: 'start was asked for', owed: false, signal, onStarting });
};

/** Waits for as much of a start as the caller wants to, and gives the record. `begun`: its wish is on disk. */
export const answered = async (
  host: Host,
  { id, name }: Pick<Vm, 'id' | 'name'>,
  { launched, begun }: { launched: Promise<Live>; begun: Promise<void> },
  { wait, timeout_ms }: Pick<StartOptions, 'wait' | 'timeout_ms'>,
): Promise<Vm> => {
  if (wait === 'none') {
    // what comes after admission is told by the record
    launched.catch(error => host.log.info({ err: error, vm: id }, 'a start that nobody waits for failed'));
    await Promise.race([launched, begun]);
    return publicVm(await needVm(host, id));
  }
  const live = await launched;
  if (wait === 'ready') await awaitGuest(host, live, name, timeout_ms);
  const vm = await needVm(host, id);
  if (wait === 'ready') refuseUngiven(vm);
  return publicVm(vm);
};

/** The record says why, once the end is stored; it is waited for, so that who asks next is not told that the VM runs. */
const endedEarly = async (host: Host, live: Live, name: string): Promise<Fault> => {
  await withDeadline('the end of the VM in the record', END_STORED_MS, live.end_stored.promise).catch(() => {});
  const reason = (await host.store.findVm(live.vm_id))?.last_exit?.reason;
  const why = reason === undefined ? '.' : `: ${reason}`;
  return new Fault('vmm', `VM '${name}' ended before its guest was ready${why}`, { hint: `nexusctl vm logs ${name}` });
};

const awaitGuest = async (host: Host, live: Live, name: string, timeout_ms: number): Promise<void> => {
  const deadline = AbortSignal.timeout(timeout_ms);
  try {
    await guestReady(live, AbortSignal.any([deadline, host.closing]));
    await raced(guestProvisioned(live, host.closing), host.closing);
    // either leaves what it was given for later
    host.closing.throwIfAborted();
    live.gone.signal.throwIfAborted();
  } catch (error) {
    if (host.closing.aborted) throw new Fault('canceled', `The daemon stops; VM '${name}' goes on running.`);
    if (live.gone.signal.aborted) throw await endedEarly(host, live, name);
    if (!deadline.aborted) throw error;
    throw new Fault(
      'timeout',
      `The guest of VM '${name}' did not ring within ${timeout_ms} ms; the VM goes on running.`,
      {
        hint: `nexusctl vm logs ${name} shows its console; nexusctl vm stop ${name} --force ends it`,
        cause: error,
      },
    );
  }
};

export interface Launch {
  /** When it was asked for, `performance.now()`. */
  asked: number;
  actor: string;
  why: string;
  /** A start by the daemon itself: one that fails is done again, as the VM's policy wants it. */
  owed: boolean;
  /** Of the lock. */
  signal: AbortSignal;
  onStarting: () => void;
}

/** From `starting` to `running`. The caller has the VM's lock and has admitted the start. */
export const launch = async (host: Host, vm: VmRecord, assets: Assets, how: Launch): Promise<Live> => {
  const { id } = vm;
  const { signal, actor } = how;
  signal.throwIfAborted();
  await host.step('start.starting', async () =>
    moveVm(host, id, {
      to: 'starting',
      why: how.why,
      actor,
      // one that the daemon owes stays owed until it runs: the next daemon does what this one does not live to do
      patch: {
        ...{ error: null, pid: null, run: null, guest: null, guest_facts: null, boot_ms: null },
        ...(how.owed ? {} : NOT_OWED),
        ...(await provisionAtStart(host, vm)),
      },
    }),
  );
  how.onStarting();
  const undo = new Undo();
  try {
    const live = await boot(host, vm, assets, signal, undo, how.asked);
    const { machine } = live;
    await host.step('start.running', () =>
      moveVm(host, id, {
        to: 'running',
        why: `${machine.kind} runs as process ${machine.proc.pid}`,
        actor,
        patch: {
          pid: machine.proc.pid,
          guest: live.guest.state,
          runs_on: machine.kind,
          vmm_version: assets.version,
          accel: machine.accel,
          restart_at_ms: null,
          started_at_ms: Date.now(),
          stopped_at_ms: null,
        },
      }),
    );
    undo.commit();
    live.stored.resolve();
    keepSoon(host, live);
    return live;
  } catch (error) {
    await undo.unwind((step, e) => host.log.error({ err: e, vm: id, step }, 'cannot undo a step of a start'));
    const cause = signal.aborted ? signal.reason : error;
    if (await outlived(host, id)) throw await undone(host, vm, cause);
    throw await failed(host, vm, cause, how);
  }
};

/** True if a VMM of the VM is there that nobody could end; it may write to the VM's disks. What was killed is given a moment to go. */
const outlived = async (host: Host, id: string): Promise<boolean> => {
  const left = async () => (await host.vmms.find(host.paths.vms)).some(vmm => vmm.vm_id === id);
  return poll('the end of a VMM', GONE_MS, async () => ((await left()) ? undefined : false)).catch(() => true);
};

/** The record goes on saying that it starts, so that nobody else gets its disks: stop, delete and the next daemon end that process. */
const undone = async (host: Host, vm: VmRecord, cause: unknown): Promise<Fault> => {
  const { code, message } = faultOf(host, vm, cause);
  const detail = `${message} Its VMM does not end: the disks of VM '${vm.name}' stay with it.`;
  const hint = `nexusctl vm stop --force ${vm.name}`;
  host.log.error({ vm: vm.id }, 'the VMM of a start that failed does not end');
  await host.store
    .noteVm(vm.id, { guest: null, error: { at_ms: Date.now(), code, detail, hint } })
    .catch(error => host.log.error({ err: error, vm: vm.id }, 'the end of a start is not stored'));
  return new Fault(code, detail, { hint, cause });
};

const faultOf = (host: Host, vm: VmRecord, cause: unknown): Fault => {
  const error = named(vm, diskFull(cause, host.paths.data));
  if (error instanceof Fault) return error;
  host.log.error({ err: error, vm: vm.id }, 'a start failed in a way that was not foreseen');
  const why = error instanceof Error ? error.message : String(error);
  return new Fault('internal', `Cannot start VM '${vm.name}': ${why}`, { cause: error });
};

/** What is owed after a start that failed. One that this daemon does not finish because it stops is the next one's. */
const owedAfter = (host: Host, vm: VmRecord, { owed, signal }: Launch): VmPatch => {
  const now_ms = Date.now();
  if (owed && host.closing.aborted) return { restart_at_ms: now_ms };
  if (!owed || signal.aborted) return NOT_OWED;
  return afterEnd(vm, { ending: 'crash', up_ms: 0, now_ms, times: host.restart_times });
};

/** Writes why the start failed and gives the fault to throw. An abort (stop, delete) is no failure. */
const failed = async (host: Host, vm: VmRecord, cause: unknown, how: Launch): Promise<Fault> => {
  const fault = faultOf(host, vm, cause);
  const { code, message, hint } = fault;
  const { aborted } = how.signal;
  const to = aborted ? 'stopped' : 'failed';
  const patch = {
    pid: null,
    run: null,
    guest: null,
    error: aborted ? null : { at_ms: Date.now(), code, detail: message, ...(hint === undefined ? {} : { hint }) },
    ...owedAfter(host, vm, how),
  };
  const store = async () => {
    await host.step('start.failed', () => moveVm(host, vm.id, { to, why: message, actor: 'daemon', patch }));
    if (typeof patch.restart_at_ms === 'number') host.restarts.at(vm.id, patch.restart_at_ms);
  };
  await store().catch(e => storeLater(host, vm, store, e));
  return fault;
};

/** The end of a start that could not be written is written when it can be, unless the VM has moved on. Does not wait for that. */
const storeLater = (host: Host, { id }: VmRecord, store: () => Promise<void>, first: unknown): void => {
  host.log.error({ err: first, vm: id }, 'cannot store the end of a start');
  const again = async () => {
    await using _held = await host.locks.take(id, 'the daemon', { signal: host.closing });
    if ((await host.store.findVm(id))?.state === 'starting') await store();
  };
  insist({ log: host.log.child({ vm: id }), closing: host.closing }, 'the end of a start', again).catch(error => {
    if (!host.closing.aborted) host.log.error({ err: error, vm: id }, 'the end of a start is not stored');
  });
};

const boot = async (
  host: Host,
  vm: VmRecord,
  assets: Assets,
  signal: AbortSignal,
  undo: Undo,
  asked: number,
): Promise<Live> => {
  const times: StartTimes = { asked, spawned: asked, bell: null };
  const { vmm } = assets;
  const dir = await host.step('start.dir', () => ensureDir(runDir(host.paths, vm.id), 0o700));
  const initrd = await host.step('start.initrd', () => initrdFor(host, assets.kernel, signal));
  signal.throwIfAborted();
  const log = consoleLog(host.paths, vm.id);
  const console = await host.step('start.console', () => openConsole({ fifo: join(dir, 'console'), log }));
  undo.push('console', () => console.close());
  console.begin(`start of VM '${vm.name}', kernel ${assets.kernel.version}`);
  const machine = await vmm.start(
    {
      id: vm.id,
      dir,
      vcpus: vm.vcpus,
      memory_mib: vm.memory_mib,
      kernel: join(assetDir(host.paths, 'kernel', assets.kernel.id), 'vmlinux'),
      initrd,
      cmdline: [...assets.guest_words, `nexus.hostname=${vm.name}`],
      disks: assets.disks,
      disk_rate_bytes: vm.disk_rate_bytes,
      disk_rate_ops: vm.disk_rate_ops,
      vsock_cid: vm.vsock_cid,
      uid: vm.host_uid,
      program: assets.program,
    },
    signal,
    async proc => {
      times.spawned = performance.now();
      await host.step('start.process', () =>
        host.store.noteVm(vm.id, {
          run: { ...proc, firecracker_id: assets.firecracker_id, kernel_id: assets.kernel.id },
          pid: proc.pid,
        }),
      );
    },
  );
  const live = hold(host, vm, machine, console, times);
  undo.push('machine', async () => {
    live.end_owner = 'stop';
    try {
      await machine.signal('SIGKILL');
      await withDeadline('the end of the VMM', KILL_MS, machine.ended);
    } finally {
      await letGo(host, live);
      forget(host, live);
    }
  });
  signal.throwIfAborted();
  return live;
};
