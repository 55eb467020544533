/** At its start the daemon makes what it finds and what is written agree, before any door opens. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import { sweepScratch } from '../assets/scratch.ts';
import { removeTree } from '../lib/files.ts';
import { bootId, isAlive } from '../lib/proc.ts';
import type { VmRecord } from '../store/store.ts';
import { type Console, openConsole } from '../vmm/console.ts';
import type { Machine } from '../vmm/machine.ts';
import { sweepDisks } from './disk_notes.ts';
import type { Host } from './host.ts';
import { sweepInitrds } from './initrd.ts';
import { endKeepers, keeperFor } from './keepers.ts';
import { sweepOutside } from './land.ts';
import { hold } from './live.ts';
import { consoleLog, runDir } from './paths.ts';
import { recordPaused } from './paused.ts';
import { plan, type Step } from './plan.ts';
import { stopVm } from './stop.ts';
import { endOldWork, endVmm } from './stray.ts';
import { noteGap, writeEnd } from './unseen.ts';

/** The boot of the host in which the last daemon came up. */
const BOOT_NOTE = 'boot_id';

export const reconcile = async (host: Host): Promise<void> => {
  await host.step('reconcile.work', () => endOldWork(host));
  for (const job of await host.step('reconcile.jobs', () => host.store.interruptJobs(Date.now()))) {
    host.log.info({ job: job.id, kind: job.kind }, 'a job was interrupted by the end of the daemon');
  }
  for (const build of await host.step('reconcile.builds', () => host.store.interruptBuilds(Date.now()))) {
    host.log.info({ build }, 'a build was interrupted by the end of the daemon');
  }
  const vms = await host.store.listVms();
  const rebooted = await hostRestarted(host, vms);
  const found = await host.vmms.find(host.paths.vms);
  const adoptions: (() => Promise<void>)[] = [];
  for (const step of plan(found, vms, bootId(), rebooted)) {
    const vm = vms.find(v => v.id === step.vm_id);
    host.log.info({ vm: step.vm_id, step: step.do }, 'reconcile');
    if (step.do === 'end') await end(host, step).catch(() => host.strays.add(step.vm_id));
    else if (host.strays.has(step.vm_id))
      continue; // its state stays, so that nobody starts it beside that process
    else if (step.do === 'write') await writeEnd(host, step, rebooted);
    else if (vm !== undefined) adoptions.push(() => adopt(host, vm, step));
  }
  // side by side: a silent VMM takes its time
  for (const result of await Promise.allSettled(adoptions.map(a => a()))) {
    if (result.status === 'rejected') throw result.reason;
  }
  if (rebooted) await oweAutoStarts(host);
  await host.step('reconcile.boot', () => host.store.writeNote(BOOT_NOTE, bootId()));
  await endKeepers(host);
  await sweep(host);
};

/** True if the host was started again since the last daemon came up on this data directory. */
const hostRestarted = async (host: Host, vms: readonly VmRecord[]): Promise<boolean> => {
  const before = await host.store.findNote(BOOT_NOTE);
  if (before !== undefined) return before !== bootId();
  return vms.some(vm => vm.run !== null && vm.run.boot_id !== bootId()); // a daemon that took no note
};

/** Told in the record before the boot is noted: a daemon that dies in between leaves all of it to the next. */
const oweAutoStarts = async (host: Host): Promise<void> => {
  for (const vm of await host.store.listVms()) {
    if (!vm.auto_start || vm.restart_at_ms !== null || VM_LIVE.includes(vm.state)) continue;
    const owed = { restart_at_ms: Date.now(), restart_count: 0 };
    await host.step('reconcile.owe', () => host.store.patchVm(vm.id, owed));
  }
};

const end = async (host: Host, step: Extract<Step, { do: 'end' }>): Promise<void> => {
  const { vm_id, proc, why } = step;
  host.log.warn({ vm: vm_id, pid: proc.pid, why }, 'ending a VMM');
  try {
    await host.step('reconcile.end', () => endVmm(vm_id, proc));
  } catch (error) {
    host.log.error({ err: error, vm: vm_id, pid: proc.pid }, 'a VMM that nobody may own does not end');
    throw error;
  }
};

/**
 * A live VMM is never called crashed, even if it does not answer: then its guest is `unreachable`. What cannot be adopted goes on
 * unheld; stop and delete find its process.
 */
const adopt = async (host: Host, vm: VmRecord, step: Extract<Step, { do: 'adopt' }>): Promise<void> => {
  try {
    const [machine, console] = await takeUp(host, vm, step);
    const live = hold(host, vm, machine, console, null);
    await recordPaused(host, live).catch(error => {
      host.log.warn({ err: error, vm: vm.id }, 'a VMM does not say whether it stands still');
    });
    live.stored.resolve();
    if (!step.stopping) return;
    void goOnStopping(host, vm);
  } catch (error) {
    if (await isAlive(step.proc)) {
      host.log.error({ err: error, vm: vm.id }, 'a VMM cannot be adopted');
      await host.store.patchVm(vm.id, { guest: 'unreachable' });
    } else {
      const why = 'The VMM ended as the daemon came back.';
      await writeEnd(host, { vm_id: vm.id, to: step.stopping ? 'stopped' : 'crashed', why, judged: !step.stopping });
    }
  }
};

/** A stop, or the first half of a restart, that an earlier daemon began. */
const goOnStopping = async (host: Host, { id, restart_at_ms }: VmRecord): Promise<void> => {
  try {
    const again = restart_at_ms !== null;
    const stopped = await stopVm(host, id, { force: false, timeout_ms: 30_000, actor: 'daemon', again });
    if (stopped.restart_at_ms !== null) host.restarts.at(id, stopped.restart_at_ms);
  } catch (error) {
    const overtaken = error instanceof Fault && error.code === 'canceled';
    host.log[overtaken ? 'info' : 'error'](
      { err: error, vm: id },
      'a stop that an earlier daemon began is not finished',
    );
  }
};

const takeUp = async (host: Host, vm: VmRecord, step: Extract<Step, { do: 'adopt' }>): Promise<[Machine, Console]> => {
  const dir = runDir(host.paths, vm.id);
  const console = await openConsole({ fifo: join(dir, 'console'), log: consoleLog(host.paths, vm.id) });
  noteGap(console);
  try {
    // the driver has its own deadline for a VMM that does not answer
    const { id, vsock_cid } = vm;
    const options = { id, dir, vsock_cid, proc: step.proc, accel: vm.accel ?? 'tcg' } as const;
    const machine = await host.step('reconcile.adopt', () => host.vmms.of(step.kind).adopt(options, host.closing));
    await host.store.patchVm(vm.id, { guest: 'connecting' });
    await keeperFor(host, vm.id);
    return [machine, console];
  } catch (error) {
    await console.close();
    throw error;
  }
};

/** Removes what belongs to no record: a killed daemon may have left it. What cannot be removed does not keep the daemon from starting. */
const sweep = async (host: Host): Promise<void> => {
  const { store, paths } = host;
  const [vms, ws, images, kernels, rootfs, firecrackers] = await Promise.all([
    store.listVms(),
    store.listWs(),
    store.listImages(),
    store.assets.kernel.list(),
    store.assets.rootfs.list(),
    store.assets.firecracker.list(),
  ]);
  const ids = (records: readonly { id: string }[]) => new Set(records.map(r => r.id));
  for (const work of [
    () => sweepDisks(host, { images: ids(images), workspaces: ids(ws) }),
    () => sweepDir(host, paths.vms, ids(vms)),
    () => sweepDir(host, paths.kernels, ids(kernels)),
    () => sweepDir(host, paths.rootfs, ids(rootfs)),
    () => sweepDir(host, paths.firecrackers, ids(firecrackers)),
    () => sweepOutside(host),
    () => sweepDir(host, paths.tmp, new Set()),
    () => sweepScratch(paths.data),
    () => sweepInitrds(host, ids(kernels)),
    () => host.jobs.sweep(),
    () => host.cgroups.sweep(),
  ]) {
    try {
      const gone = await host.step('reconcile.sweep', work);
      if (gone.length > 0) host.log.info({ gone }, 'removed leftovers');
    } catch (error) {
      host.log.error({ err: error }, 'cannot remove leftovers');
    }
  }
};

const sweepDir = async (host: Host, dir: string, known: Set<string>): Promise<string[]> => {
  const gone: string[] = [];
  for (const name of await readdir(dir)) {
    if (known.has(name)) continue;
    await removeTree(host.paths.data, join(dir, name));
    gone.push(join(dir, name));
  }
  return gone;
};
