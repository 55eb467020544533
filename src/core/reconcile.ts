/** At its start the daemon makes what it finds and what is written agree, before any door opens. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { poll } from '../lib/deadline.ts';
import { removeTree } from '../lib/files.ts';
import { bootId, isAlive, type ProcRef, signalProc } from '../lib/proc.ts';
import type { VmRecord } from '../store/store.ts';
import { openConsole } from '../vmm/console.ts';
import type { Host } from './host.ts';
import { hold } from './live.ts';
import { runDir, vmDir } from './paths.ts';
import { plan, type Step } from './plan.ts';
import { stopVm } from './stop.ts';

const ADOPT_MS = 5000;
const END_MS = 10_000;

export const reconcile = async (host: Host): Promise<void> => {
  for (const job of await host.store.interruptJobs(Date.now())) {
    host.log.info({ job: job.id, kind: job.kind }, 'a job was interrupted by the end of the daemon');
  }
  const vms = await host.store.listVms();
  const found = await host.vmm.find(host.paths.vms);
  for (const step of plan(found, vms, bootId())) {
    const vm = vms.find(v => v.id === step.vm_id);
    host.log.info({ vm: step.vm_id, step: step.do }, 'reconcile');
    await apply(host, step, vm);
  }
  await sweep(host);
};

const apply = async (host: Host, step: Step, vm: VmRecord | undefined): Promise<void> => {
  if (step.do === 'end') {
    host.log.warn({ vm: step.vm_id, pid: step.proc.pid, why: step.why }, 'ending a VMM');
    await endProcess(step.proc);
  } else if (step.do === 'write') {
    await host.store.transitionVm(step.vm_id, {
      to: step.to,
      why: step.why,
      actor: 'daemon',
      patch: {
        pid: null,
        run: null,
        guest: null,
        ...(step.to === 'failed'
          ? { error: { at_ms: Date.now(), code: 'vmm', detail: step.why } }
          : {
              stopped_at_ms: Date.now(),
              last_exit: { at_ms: Date.now(), reason: step.why, exit_code: null, signal: null, console_tail: [] },
            }),
      },
    });
  } else if (vm !== undefined) await adopt(host, vm, step);
};

const endProcess = async (proc: ProcRef): Promise<void> => {
  await signalProc(proc, 'SIGKILL');
  await poll(`the end of process ${proc.pid}`, END_MS, async () => ((await isAlive(proc)) ? undefined : true));
};

/** A live VMM is never called crashed, even if it does not answer: then its guest is `unreachable`. */
const adopt = async (host: Host, vm: VmRecord, step: Extract<Step, { do: 'adopt' }>): Promise<void> => {
  const dir = runDir(host.paths, vm.id);
  const console = await openConsole({ fifo: join(dir, 'console'), log: join(vmDir(host.paths, vm.id), 'console.log') });
  console.note('no daemon was there; what the guest wrote beyond 64 KiB is lost', {
    kind: 'gap',
    ...(console.written_ms === null ? {} : { since_ms: console.written_ms }),
  });
  try {
    const machine = await host.vmm.adopt(
      { id: vm.id, dir, proc: step.proc, accel: vm.accel ?? 'tcg' },
      AbortSignal.timeout(ADOPT_MS),
    );
    await host.store.patchVm(vm.id, { guest: 'connecting' });
    const live = hold(host, vm, machine, console, null);
    live.stored.resolve();
    if (step.stopping) {
      void stopVm(host, vm.id, { force: false, timeout_ms: 30_000, actor: 'daemon' }).catch(error =>
        host.log.error({ err: error, vm: vm.id }, 'cannot finish a stop that an earlier daemon began'),
      );
    }
  } catch (error) {
    await console.close();
    if (await isAlive(step.proc)) throw error;
    await apply(host, { do: 'write', vm_id: vm.id, to: 'crashed', why: 'The VMM ended as the daemon came back.' }, vm);
  }
};

/** Removes what belongs to no record: a killed daemon may have left it. */
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
  const gone = await host.disks.sweep({ images: ids(images), workspaces: ids(ws) });
  gone.push(...(await sweepDir(host, paths.vms, ids(vms))));
  gone.push(...(await sweepDir(host, paths.kernels, ids(kernels))));
  gone.push(...(await sweepDir(host, paths.rootfs, ids(rootfs))));
  gone.push(...(await sweepDir(host, paths.tmp, new Set())));
  if (gone.length > 0) host.log.info({ gone }, 'removed leftovers');
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
