/** The verb restart: a graceful stop and a start under one hold of the VM's lock. */
import type { Vm } from '../api/vm.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import { admitAssets } from './admission.ts';
import { admit, lockVm, needVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { orLater } from './owed.ts';
import { answered, launch, type StartOptions } from './start.ts';
import { stopLocked } from './stop.ts';

export interface RestartOptions extends StartOptions {
  force: boolean;
}

export const restartVm = async (host: Host, ref: string, options: RestartOptions): Promise<Vm> => {
  const { id, name } = await needVm(host, ref);
  const begun = Promise.withResolvers<void>();
  const launched = restartLocked(host, id, options, () => begun.resolve());
  return answered(host, { id, name }, { launched, begun: begun.promise }, options);
};

/** From `stopping` on the record says that a start is owed: a daemon that dies in between leaves it to the next. */
const restartLocked = async (host: Host, id: string, options: RestartOptions, onBegun: () => void): Promise<Live> => {
  const asked = performance.now();
  const { force, timeout_ms, actor } = options;
  await using held = await lockVm(host, { id }, 'restart');
  const vm = await needVm(host, id);
  admit(vm, 'restart');
  using assets = await host.step('start.admit', () => admitAssets(host, vm)); // a VM that could not be started again is not stopped
  held.signal.throwIfAborted();
  const lives = VM_LIVE.includes(vm.state);
  if (lives) await stopLocked(host, vm, { force, timeout_ms, actor, again: true, onStopping: onBegun }, held.signal);
  const how = { asked, actor, why: 'restart was asked for', owed: lives, signal: held.signal, onStarting: onBegun };
  try {
    return await launch(host, await needVm(host, id), assets, how);
  } catch (error) {
    await orLater(host, id);
    throw error;
  }
};
