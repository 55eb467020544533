/** At its start the daemon makes what it finds and what is written agree, before any door opens. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { removeTree } from '../lib/files.ts';
import { bootId, isAlive } from '../lib/proc.ts';
import type { VmRecord } from '../store/store.ts';
import { type Console, openConsole, readConsole } from '../vmm/console.ts';
import type { Machine } from '../vmm/machine.ts';
import type { Host } from './host.ts';
import { sweepInitrds } from './initrd.ts';
import { hold } from './live.ts';
import { moveVm } from './move.ts';
import { consoleLog, runDir } from './paths.ts';
import { recordPaused } from './paused.ts';
import { plan, type Step } from './plan.ts';
import { stopVm } from './stop.ts';
import { endOldWork, endProcess } from './stray.ts';

/** The last lines of the console of a VM that ended while no daemon was there. */
const CONSOLE_TAIL = 20;

export const reconcile = async (host: Host): Promise<void> => {
  await host.step('reconcile.work', () => endOldWork(host));
  for (const job of await host.step('reconcile.jobs', () => host.store.interruptJobs(Date.now()))) {
    host.log.info({ job: job.id, kind: job.kind }, 'a job was interrupted by the end of the daemon');
  }
  const vms = await host.store.listVms();
  const found = await host.vmms.find(host.paths.vms);
  const undone = new Set<string>();
  const adoptions: (() => Promise<void>)[] = [];
  for (const step of plan(found, vms, bootId())) {
    const vm = vms.find(v => v.id === step.vm_id);
    host.log.info({ vm: step.vm_id, step: step.do }, 'reconcile');
    if (step.do === 'end') await end(host, step).catch(() => undone.add(step.vm_id));
    else if (undone.has(step.vm_id))
      continue; // its state stays, so that nobody starts it beside that process
    else if (step.do === 'write') await write(host, step);
    else if (vm !== undefined) adoptions.push(() => adopt(host, vm, step));
  }
  // side by side: a silent VMM takes its time
  for (const result of await Promise.allSettled(adoptions.map(a => a()))) {
    if (result.status === 'rejected') throw result.reason;
  }
  await sweep(host);
};

const end = async (host: Host, step: Extract<Step, { do: 'end' }>): Promise<void> => {
  const { vm_id, proc, why } = step;
  host.log.warn({ vm: vm_id, pid: proc.pid, why }, 'ending a VMM');
  try {
    await host.step('reconcile.end', () => endProcess(proc));
  } catch (error) {
    host.log.error({ err: error, vm: vm_id, pid: proc.pid }, 'a VMM that nobody may own does not end');
    throw error;
  }
};

const write = async (host: Host, step: Pick<Extract<Step, { do: 'write' }>, 'vm_id' | 'to' | 'why'>): Promise<void> => {
  const { vm_id, to, why } = step;
  const at_ms = Date.now();
  const told =
    to === 'failed'
      ? { error: { at_ms, code: 'vmm' as const, detail: why } }
      : {
          stopped_at_ms: at_ms,
          last_exit: { at_ms, reason: why, exit_code: null, signal: null, console_tail: await lastLines(host, vm_id) },
        };
  const patch = { pid: null, run: null, guest: null, ...told };
  await host.step('reconcile.record', () => moveVm(host, vm_id, { to, why, actor: 'daemon', patch }));
  await host.step('reconcile.sockets', () => removeSockets(host, vm_id));
};

const lastLines = (host: Host, id: string): Promise<string[]> =>
  readConsole(consoleLog(host.paths, id), CONSOLE_TAIL).catch(() => []);

/** A VMM that ended without a daemon leaves its sockets. */
const removeSockets = async (host: Host, id: string): Promise<void> => {
  const dir = runDir(host.paths, id);
  for (const name of await readdir(dir).catch(() => [])) {
    if (name.endsWith('.sock')) await removeTree(host.paths.data, join(dir, name));
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
    stopVm(host, vm.id, { force: false, timeout_ms: 30_000, actor: 'daemon', again: vm.restart_at_ms !== null }).catch(
      error => {
        const overtaken = error instanceof Fault && error.code === 'canceled';
        host.log[overtaken ? 'info' : 'error'](
          { err: error, vm: vm.id },
          'a stop that an earlier daemon began is not finished',
        );
      },
    );
  } catch (error) {
    if (await isAlive(step.proc)) {
      host.log.error({ err: error, vm: vm.id }, 'a VMM cannot be adopted');
      await host.store.patchVm(vm.id, { guest: 'unreachable' });
    } else {
      const why = 'The VMM ended as the daemon came back.';
      await write(host, { vm_id: vm.id, to: step.stopping ? 'stopped' : 'crashed', why });
    }
  }
};

const takeUp = async (host: Host, vm: VmRecord, step: Extract<Step, { do: 'adopt' }>): Promise<[Machine, Console]> => {
  const dir = runDir(host.paths, vm.id);
  const console = await openConsole({ fifo: join(dir, 'console'), log: consoleLog(host.paths, vm.id) });
  console.note('no daemon was there; what the guest wrote beyond 64 KiB is lost', {
    kind: 'gap',
    ...(console.written_ms === null ? {} : { since_ms: console.written_ms }),
  });
  try {
    // the driver has its own deadline for a VMM that does not answer
    const { id, vsock_cid } = vm;
    const options = { id, dir, vsock_cid, proc: step.proc, accel: vm.accel ?? 'tcg' } as const;
    const machine = await host.step('reconcile.adopt', () => host.vmms.of(step.kind).adopt(options, host.closing));
    await host.store.patchVm(vm.id, { guest: 'connecting' });
    return [machine, console];
  } catch (error) {
    await console.close();
    throw error;
  }
};

/** Removes what belongs to no record: a killed daemon may have left it. What cannot be removed does not keep the daemon from starting. */
const sweep = async (host: Host): Promise<void> => {
  const { store, paths } = host;
  const [vms, ws, images, kernels, rootfs] = await Promise.all([
    store.listVms(),
    store.listWs(),
    store.listImages(),
    store.listKernels(),
    store.listRootfs(),
  ]);
  const ids = (records: readonly { id: string }[]) => new Set(records.map(r => r.id));
  for (const work of [
    () => host.disks.sweep({ images: ids(images), workspaces: ids(ws) }),
    () => sweepDir(host, paths.vms, ids(vms)),
    () => sweepDir(host, paths.kernels, ids(kernels)),
    () => sweepDir(host, paths.rootfs, ids(rootfs)),
    () => sweepDir(host, paths.tmp, new Set()),
    () => sweepInitrds(host, ids(kernels)),
    () => host.jobs.sweep(),
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
