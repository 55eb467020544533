/** What people are told once, and not again. */
import type { Vm } from '../api/vm.ts';
import type { Host } from './host.ts';

/** The store's note that it was said in this data directory. */
const EMULATED = 'said.emulated';

/** Adds what is to be said of this host to the answer of a start. What cannot be stored is no reason for that to fail. */
export const withNotice = async (host: Host, vm: Vm): Promise<Vm & { notice?: string }> => {
  try {
    const notice = await emulation(host, vm);
    return notice === undefined ? vm : { ...vm, notice };
  } catch (error) {
    host.log.warn({ err: error, vm: vm.id }, 'what was said once may be said again');
    return vm;
  }
};

/** Of the first VM of a data directory that is emulated: that it is, and what would make it fast. */
const emulation = async (host: Host, { name, accel, runs_on }: Vm): Promise<string | undefined> => {
  if (accel !== 'tcg' || runs_on === null) return undefined;
  await using held = host.locks.tryTake(EMULATED, 'a notice');
  if (held === undefined || (await host.store.findNote(EMULATED)) !== undefined) return undefined;
  await host.store.writeNote(EMULATED, new Date().toISOString());
  const { why, hint } = host.vmms.of(runs_on).facts();
  const mend = hint === undefined ? '' : ` What would make it fast: ${hint}.`;
  return `VM '${name}' is emulated, which is slow: ${why}.${mend} This is said once; nexusctl doctor says it again.`;
};
