/** The verbs pause and resume. */
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';
import { isAlive } from '../lib/proc.ts';
import type { VmRecord } from '../store/store.ts';
import { admit, lockVm, named, needVm, publicVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { liveOf } from './live.ts';
import { moveVm } from './move.ts';
import { holdGuest, unpause } from './paused.ts';

export const pauseVm = async (host: Host, ref: string, actor: string): Promise<Vm> => {
  const { id } = await needVm(host, ref);
  await using held = await lockVm(host, { id }, 'pause');
  const vm = await needVm(host, id);
  admit(vm, 'pause');
  const live = needLive(host, vm, 'pause');
  holdGuest(live);
  try {
    await host.step('pause.machine', () => live.machine.pause());
    held.signal.throwIfAborted();
    const move = { to: 'paused', why: 'pause was asked for', actor } as const;
    return publicVm(await host.step('pause.record', () => moveVm(host, id, move)));
  } catch (error) {
    await undone(host, live, () => unpause(live));
    throw named(vm, error);
  }
};

export const resumeVm = async (host: Host, ref: string, actor: string): Promise<Vm> => {
  const { id } = await needVm(host, ref);
  await using held = await lockVm(host, { id }, 'resume');
  const vm = await needVm(host, id);
  admit(vm, 'resume');
  const live = needLive(host, vm, 'resume');
  try {
    held.signal.throwIfAborted();
    await host.step('resume.machine', () => unpause(live));
    const move = { to: 'running', why: 'resume was asked for', actor } as const;
    const resumed = publicVm(await host.step('resume.record', () => moveVm(host, id, move)));
    return resumed;
  } catch (error) {
    // what cannot be stored is undone: the record says that it stands still
    await undone(host, live, async () => {
      holdGuest(live);
      await live.machine.pause();
    });
    throw named(vm, error);
  }
};

/** A VMM that has ended needs nothing to be undone. */
const undone = async (host: Host, live: Live, undo: () => Promise<void>): Promise<void> => {
  try {
    await undo();
  } catch (error) {
    if (await isAlive(live.machine.proc)) {
      host.log.error({ err: error, vm: live.vm_id }, 'a VM may stand still, or not, beside its record');
    }
  }
};

const needLive = (host: Host, vm: VmRecord, verb: string): Live => {
  const live = liveOf(host, vm.id);
  if (live !== undefined) return live;
  throw new Fault('bad_state', `Cannot ${verb} VM '${vm.name}': its VMM has just ended, or cannot be reached.`);
};
