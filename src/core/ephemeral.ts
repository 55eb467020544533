/** Ephemeral VMs are held by streams, and deleted when nobody holds them: the rules are in `holds.ts`. */
import { Fault } from '../api/fault.ts';
import type { OpOut } from '../api/ops.ts';
import type { Vm } from '../api/vm.ts';
import { raced } from '../lib/deadline.ts';
import { needVm } from './find.ts';
import type { Host } from './host.ts';
import { deleteVm } from './stop.ts';

/** Holds it until the client has gone, or the VM. */
export const holdVm = (host: Host, vm: Vm, client: AbortSignal): AsyncIterable<OpOut<'vm.hold'>> => {
  if (vm.ephemeral) return holding(host, vm, client);
  throw new Fault('invalid', `Cannot hold VM '${vm.name}': it is not ephemeral, so it stays anyway.`);
};

const holding = async function* (host: Host, { id }: Vm, client: AbortSignal): AsyncGenerator<OpOut<'vm.hold'>> {
  using held = host.holds.take(id);
  await needVm(host, id); // it may have gone before it was held
  yield { type: 'held' };
  await raced(held.gone, client);
};

/** Deletes a VM that nobody holds. */
export const deleteLeft = async (host: Host, id: string): Promise<void> => {
  if (host.closing.aborted) return;
  try {
    await deleteVm(host, id, { keep_disk: false });
    host.log.info({ vm: id }, 'an ephemeral VM that nobody holds was deleted');
  } catch (error) {
    if (host.closing.aborted || (error instanceof Fault && error.code === 'not_found')) return;
    host.log.error({ err: error, vm: id }, 'cannot delete an ephemeral VM that nobody holds: it is tried again');
    host.holds.expect({ id, ephemeral: true });
  }
};

/** A new daemon: whoever held one has to come back. */
export const expectHolders = async (host: Host): Promise<void> => {
  for (const vm of await host.store.listVms()) host.holds.expect(vm);
};
