/** The console of a VM, over all its boots. */
import type { OpIn } from '../api/ops.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import type { VmLogMessage } from '../api/vm_watch.ts';
import { pause } from '../lib/deadline.ts';
import type { VmRecord } from '../store/store.ts';
import { readLog } from '../vmm/console.ts';
import type { Wanted } from '../vmm/console_view.ts';
import type { Host } from './host.ts';
import { liveOf } from './live.ts';
import { consoleLog } from './paths.ts';

/** Of a log that nobody asks more closely for. */
const TAIL = 200;
/** How often is looked whether a VM that is down comes up again, ms. */
const LOOK_MS = 150;

export const vmLogs = async function* (
  host: Host,
  vm: VmRecord,
  { follow: on, tail, since_ms, boot }: OpIn<'vm.logs'>,
  signal: AbortSignal,
): AsyncGenerator<VmLogMessage> {
  const wanted: Wanted = {
    tail: tail ?? (since_ms === undefined && boot === undefined ? TAIL : undefined),
    since_ms: since_ms === undefined ? undefined : Date.now() - since_ms,
    boot,
    open_end: on,
  };
  const live = liveOf(host, vm.id);
  if (on) yield* follow(host, vm.id, wanted, AbortSignal.any([signal, host.closing]));
  else yield* live === undefined ? readLog(consoleLog(host.paths, vm.id), wanted) : live.console.past(wanted);
  host.closing.throwIfAborted(); // it has not come to an end, the daemon has
  yield { type: 'end' };
};

/** The past, then one boot after the other; what is written between them is read from the log. */
const follow = async function* (
  host: Host,
  id: string,
  wanted: Wanted,
  signal: AbortSignal,
): AsyncGenerator<VmLogMessage> {
  const path = consoleLog(host.paths, id);
  let past = wanted;
  while (!signal.aborted) {
    const live = liveOf(host, id);
    if (live !== undefined) {
      yield* live.console.follow(signal, past); // to its close: the last lines come after the end
      past = { after_boot: live.console.boot };
    } else past = { after_boot: yield* readLog(path, past) };
    if (await comesUp(host, id, signal)) continue;
    yield* readLog(path, past); // a start that failed
    return;
  }
};

/** True when the VM is up again; false when it is down and nothing says that it will be started: it may be gone, too. */
const comesUp = async (host: Host, id: string, signal: AbortSignal): Promise<boolean> => {
  while (!signal.aborted) {
    if (liveOf(host, id) !== undefined) return true;
    const vm = await host.store.findVm(id);
    if (vm === undefined) return false;
    const awaited = host.live.has(id) || host.locks.holder(id) !== undefined || vm.restart_at_ms !== null;
    if (!awaited && !VM_LIVE.includes(vm.state)) return false;
    await pause(LOOK_MS, signal).catch(() => {});
  }
  return false;
};
