/** The one way by which a VM comes to another state: the record, its history, the event, the log and what is counted say the same. */
import type { Transition, VmRecord } from '../store/store.ts';
import type { Host } from './host.ts';

/** Faults: `bad_state` (an illegal transition), `not_found`, `no_room`. */
export const moveVm = async (host: Host, id: string, step: Transition): Promise<VmRecord> => {
  const vm = await host.store.transitionVm(id, step);
  tellState(host, vm, step);
  return vm;
};

/** What was stored of a VM's state. */
export const tellState = (
  host: Pick<Host, 'events' | 'log' | 'metrics'>,
  vm: VmRecord,
  { to, why, actor }: Pick<Transition, 'to' | 'why' | 'actor'>,
): void => {
  host.events.emit('vm.state', vm.id, { state: to, why, actor });
  host.metrics.moved(to);
  const level = to === 'crashed' || to === 'failed' ? 'warn' : 'info';
  host.log[level]({ vm: vm.id, name: vm.name, state: to, actor, why }, 'a VM came to another state');
};
