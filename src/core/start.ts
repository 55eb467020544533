/** The story of a start: docs/architecture.md, "A VM's life". */
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Kernel } from '../api/kernel.ts';
import type { Vm } from '../api/vm.ts';
import { withDeadline } from '../lib/deadline.ts';
import { ensureDir, exists } from '../lib/files.ts';
import { Undo } from '../lib/undo.ts';
import type { VmRecord } from '../store/store.ts';
import { openConsole } from '../vmm/console.ts';
import type { MachineSpec, Vmm } from '../vmm/machine.ts';
import { admit, busy, needKernel, needVm, publicVm } from './find.ts';
import type { Host, Live, StartTimes } from './host.ts';
import { initrdFor } from './initrd.ts';
import { insist } from './insist.ts';
import { diskFull } from './land.ts';
import { forget, guestReady, hold, letGo } from './live.ts';
import { moveVm } from './move.ts';
import { consoleLog, kernelDir, runDir } from './paths.ts';
import { useAsset } from './using.ts';

/** From SIGKILL to the end of a VMM whose start is undone. */
const KILL_MS = 10_000;
const END_STORED_MS = 5000;

export interface StartOptions {
  wait: 'ready' | 'running' | 'none';
  timeout_ms: number;
  actor: string;
}

/** Starts a VM. Faults: see the operation `vm.start`. */
export const startVm = async (host: Host, ref: string, options: StartOptions): Promise<Vm> => {
  const { id, name } = await needVm(host, ref);
  const starting = Promise.withResolvers<void>();
  const launched = launch(host, id, options.actor, () => starting.resolve());
  if (options.wait === 'none') {
    // what comes after admission is told by the record
    launched.catch(error => host.log.info({ err: error, vm: id }, 'a start that nobody waits for failed'));
    await Promise.race([launched, starting.promise]);
    return publicVm(await needVm(host, id));
  }
  const live = await launched;
  if (options.wait === 'ready') await awaitGuest(host, live, name, options.timeout_ms);
  return publicVm(await needVm(host, id));
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

const launch = async (host: Host, id: string, actor: string, onStarting: () => void): Promise<Live> => {
  const asked = performance.now();
  const held = host.locks.tryTake(id, 'vm.start');
  if (held === undefined) {
    const vm = await needVm(host, id);
    throw busy(vm, 'start', host.locks.holder(id) ?? 'another operation');
  }
  await using _ = held;
  const vm = await needVm(host, id);
  admit(vm, 'start');
  using assets = await host.step('start.admit', () => admitAssets(host, vm));
  held.signal.throwIfAborted();
  await host.step('start.starting', () =>
    moveVm(host, id, {
      to: 'starting',
      why: 'start was asked for',
      actor,
      patch: { error: null, pid: null, run: null, guest: null, guest_facts: null, boot_ms: null },
    }),
  );
  onStarting();
  const undo = new Undo();
  try {
    const live = await boot(host, vm, assets, held.signal, undo, asked);
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
          vmm_version: host.vmms.of(machine.kind).facts().version,
          accel: machine.accel,
          started_at_ms: Date.now(),
          stopped_at_ms: null,
        },
      }),
    );
    undo.commit();
    live.stored.resolve();
    return live;
  } catch (error) {
    await undo.unwind((step, e) => host.log.error({ err: e, vm: id, step }, 'cannot undo a step of a start'));
    throw await failed(host, vm, held.signal.aborted ? held.signal.reason : error, held.signal.aborted);
  }
};

/** Writes why the start failed and gives the fault to throw. An abort (stop, delete) is no failure. */
const failed = async (host: Host, vm: VmRecord, cause: unknown, aborted: boolean): Promise<Fault> => {
  const error = named(vm, diskFull(cause, host.paths.data));
  const fault =
    error instanceof Fault
      ? error
      : new Fault(
          'internal',
          `Cannot start VM '${vm.name}': ${error instanceof Error ? error.message : String(error)}`,
          {
            cause: error,
          },
        );
  const { code, message, hint } = fault;
  const to = aborted ? 'stopped' : 'failed';
  const patch = {
    pid: null,
    run: null,
    guest: null,
    error: aborted ? null : { at_ms: Date.now(), code, detail: message, ...(hint === undefined ? {} : { hint }) },
  };
  const store = async () => {
    await host.step('start.failed', () => moveVm(host, vm.id, { to, why: message, actor: 'daemon', patch }));
  };
  await store().catch(e => storeLater(host, vm, store, e));
  if (code === 'internal') host.log.error({ err: error, vm: vm.id }, 'a start failed in a way that was not foreseen');
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

/** The VMM knows the ID alone; people know the name. */
const named = (vm: VmRecord, error: unknown): unknown =>
  error instanceof Fault && error.message.includes(vm.id)
    ? new Fault(error.code, error.message.replaceAll(vm.id, `'${vm.name}'`), { hint: error.hint, cause: error })
    : error;

interface Assets extends Disposable {
  vmm: Vmm;
  kernel: Kernel;
  disks: MachineSpec['disks'];
  init: 'agent' | 'image';
}

/** Everything that can be refused before anything is touched. */
const admitAssets = async (host: Host, vm: VmRecord): Promise<Assets> => {
  if (vm.root_ws_id === null) {
    throw new Fault('bad_state', `Cannot start VM '${vm.name}': it has no root workspace.`, {
      hint: `nexusctl ws attach <workspace> --vm ${vm.name} --role root`,
    });
  }
  const kernel = vm.kernel_id === null ? (await host.store.listKernels())[0] : await needKernel(host, vm.kernel_id);
  if (kernel === undefined) {
    throw new Fault('not_found', `Cannot start VM '${vm.name}': there is no kernel.`, {
      hint: 'nexusctl kernel download --provider debian',
    });
  }
  const vmm = await host.vmms.choose(vm.vmm);
  const { disks, init } = await admitDisks(host, vm);
  const used = await useAsset(host, kernel, needKernel);
  return { vmm, kernel, disks, init, [Symbol.dispose]: () => used[Symbol.dispose]() };
};

const admitDisks = async (host: Host, vm: VmRecord): Promise<Pick<Assets, 'disks' | 'init'>> => {
  const all = await host.store.listWs({ vm_id: vm.id });
  const order = [...all.filter(w => w.role === 'root'), ...all.filter(w => w.role === 'data').reverse()];
  const disks = [];
  for (const ws of order) {
    const path = host.disks.path('workspaces', ws.id);
    if (!(await exists(path))) {
      throw new Fault(
        'host',
        `Cannot start VM '${vm.name}': the disk of workspace '${ws.name}' is missing (${path}).`,
        {
          hint: `detach it: nexusctl ws detach ${ws.name}`,
        },
      );
    }
    disks.push({ id: ws.id, path, read_only: false });
  }
  const root = order[0];
  const image = root?.image_id ? await host.store.findImage(root.image_id) : undefined;
  return { disks, init: image === undefined || image.init === 'agent' ? 'agent' : 'image' };
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
      kernel: join(kernelDir(host.paths, assets.kernel.id), 'vmlinux'),
      initrd,
      cmdline: ['nexus.root=/dev/vda', `nexus.init=${assets.init}`, `nexus.hostname=${vm.name}`],
      disks: assets.disks,
      disk_rate_bytes: vm.disk_rate_bytes,
      disk_rate_ops: vm.disk_rate_ops,
      vsock_cid: vm.vsock_cid,
      uid: vm.host_uid,
    },
    signal,
    async proc => {
      times.spawned = performance.now();
      await host.step('start.process', () => host.store.patchVm(vm.id, { run: { ...proc }, pid: proc.pid }));
    },
  );
  const live = hold(host, vm, machine, console, times);
  undo.push('machine', async () => {
    live.end_owner = 'stop';
    await machine.signal('SIGKILL');
    await withDeadline('the end of the VMM', KILL_MS, machine.ended);
    await letGo(host, live);
    forget(host, live);
  });
  signal.throwIfAborted();
  return live;
};
