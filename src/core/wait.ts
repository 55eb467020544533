/** Waits until a VM is as somebody wants it to be. */
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { Vm } from '../api/vm.ts';
import { VM_LIVE, type VmState } from '../api/vm_state.ts';
import type { VmRecord } from '../store/store.ts';
import { needVm, publicVm } from './find.ts';
import type { Host } from './host.ts';
import { isReady, refuseFailed } from './provision.ts';

type Wanted = OpIn<'vm.wait'>['for'];

const ended = (vm: Vm): boolean => !VM_LIVE.includes(vm.state) && vm.restart_at_ms === null;

const IS: Record<Wanted, (vm: Vm) => boolean> = {
  ready: isReady,
  running: vm => vm.state === 'running',
  paused: vm => vm.state === 'paused',
  ended,
};

const TEXT: Record<Wanted, string> = { ready: 'be ready', running: 'run', paused: 'be paused', ended: 'end' };

/** States that nobody leaves a VM in on purpose: what is waited for will not come by itself. */
const AMISS: readonly VmState[] = ['crashed', 'failed'];

/** Aborted at its disposal. */
class Enough implements Disposable {
  readonly #abort = new AbortController();
  readonly signal = this.#abort.signal;
  [Symbol.dispose](): void {
    this.#abort.abort();
  }
}

/** Gives the record as soon as it is so. Faults: see the operation `vm.wait`. */
export const waitVm = async (host: Host, ref: string, wanted: Wanted, timeout_ms: number): Promise<Vm> => {
  const deadline = AbortSignal.timeout(timeout_ms);
  const first = await needVm(host, ref);
  const { id } = first;
  // subscribed before the first look at the record: nothing is missed in between
  using enough = new Enough();
  const events = host.events.watch({ signal: AbortSignal.any([deadline, host.closing, enough.signal]) });
  let vm: VmRecord | undefined = await host.store.findVm(id);
  let lived = false;
  const look = (): boolean => {
    if (vm === undefined) throw new Fault('not_found', `VM '${first.name}' was deleted.`);
    if (IS[wanted](vm)) return true;
    if (ended(vm) && (lived || AMISS.includes(vm.state))) throw cannotCome(vm, wanted);
    if (wanted === 'ready' && vm.state === 'running') refuseFailed(vm);
    lived ||= VM_LIVE.includes(vm.state);
    return false;
  };
  if (look()) return publicVm(vm ?? first);
  for await (const event of events) {
    if ('subject' in event && event.subject !== id) continue;
    vm = await host.store.findVm(id);
    if (look()) return publicVm(vm ?? first);
  }
  if (host.closing.aborted) throw new Fault('canceled', 'The daemon stops.');
  const now = await needVm(host, id);
  const is = now.guest === null ? now.state : `${now.state}, its guest ${now.guest}`;
  throw new Fault('timeout', `VM '${now.name}' did not ${TEXT[wanted]} within ${timeout_ms} ms: it is ${is}.`, {
    hint: `nexusctl vm logs ${now.name}`,
  });
};

const cannotCome = (vm: Vm, wanted: Wanted): Fault => {
  const why = (vm.state === 'failed' ? vm.error?.detail : vm.last_exit?.reason) ?? '';
  const text = `VM '${vm.name}' will not ${TEXT[wanted]}: it is ${vm.state}.${why === '' ? '' : ` ${why}`}`;
  return new Fault(vm.state === 'stopped' ? 'bad_state' : 'vmm', text, { hint: `nexusctl vm start ${vm.name}` });
};
