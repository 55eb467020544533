/** Starts by the daemon itself, of VMs whose record says that one is owed; their alarms and times are in `restarts.ts`. */
import { Fault } from '../api/fault.ts';
import type { Vm } from '../api/vm.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import { raced } from '../lib/deadline.ts';
import type { VmRecord } from '../store/store.ts';
import { admitAssets } from './admission.ts';
import type { Host, Live } from './host.ts';
import { guestProvisioned } from './live.ts';
import { afterEnd, OWED_START } from './restarts.ts';
import { launch } from './start.ts';

/** VMs of a higher number wait this long for the guests of a lower one. */
const READY_MS = 60_000;

const isOwed = (vm: Vm | undefined): vm is VmRecord =>
  vm !== undefined && vm.restart_at_ms !== null && !VM_LIVE.includes(vm.state);

const whyOf = ({ restart_count: n }: Vm): string =>
  n === 0 ? 'automatic start' : `automatic restart${n === 1 ? '' : `, ${n} in a row`}`;

/** Starts a VM that is owed a start, unless that was called off. What goes wrong is told by the record and the log. */
export const startOwed = async (host: Host, id: string): Promise<Live | undefined> => {
  try {
    const asked = performance.now();
    await using held = await host.locks.take(id, OWED_START, { signal: host.closing });
    const vm = await host.store.findVm(id);
    if (!isOwed(vm)) return undefined;
    using assets = await host.step('start.admit', () => admitAssets(host, vm)).catch(error => refused(host, vm, error));
    if (assets === undefined) return undefined;
    const { signal } = held;
    return await launch(host, vm, assets, {
      ...{ asked, actor: 'daemon', why: whyOf(vm), owed: true, signal, onStarting: () => {} },
    });
  } catch (error) {
    if (host.closing.aborted) return undefined;
    host.log.warn({ err: error, vm: id }, 'an automatic start failed');
    await orLater(host, id);
    return undefined;
  }
};

/** A start that was not admitted counts as one that failed. */
const refused = async (host: Host, vm: VmRecord, error: unknown): Promise<undefined> => {
  const owed = afterEnd(vm, { ending: 'crash', up_ms: 0, now_ms: Date.now(), times: host.restart_times });
  const { code, message, hint } = error instanceof Fault ? error : new Fault('internal', String(error));
  const told = { at_ms: Date.now(), code, detail: message, ...(hint === undefined ? {} : { hint }) };
  host.log.warn({ err: error, vm: vm.id }, 'an automatic start is not possible');
  await host.step('start.refused', () => host.store.patchVm(vm.id, { ...owed, error: told }));
  host.events.emit('vm.restart', vm.id, { ...owed, why: message });
  if (owed.restart_at_ms !== null) host.restarts.at(vm.id, owed.restart_at_ms);
};

/** If the failure itself could not be stored, the start is still owed. */
export const orLater = async (host: Host, id: string): Promise<void> => {
  const vm = await host.store.findVm(id).catch(() => undefined);
  const now_ms = Date.now();
  if (isOwed(vm) && (vm.restart_at_ms ?? 0) <= now_ms) host.restarts.at(id, now_ms + host.restart_times.most);
};

/**
 * Starts all VMs that are owed a start by now, in their order: one after the other, and each number when the guests of the lower ones are ready
 * or have had their time. One that fails holds back nobody. The others get their alarms.
 */
export const startAllOwed = async (host: Host): Promise<void> => {
  const owed = (await host.store.listVms()).filter(isOwed);
  const now_ms = Date.now();
  const due = owed.filter(vm => (vm.restart_at_ms ?? 0) <= now_ms);
  for (const vm of owed) if (!due.includes(vm)) host.restarts.at(vm.id, vm.restart_at_ms ?? now_ms);
  due.sort((a, b) => a.start_order - b.start_order || a.created_at_ms - b.created_at_ms || (a.id < b.id ? -1 : 1));
  for (const group of Map.groupBy(due, vm => vm.start_order).values()) {
    const started: Live[] = [];
    for (const vm of group) {
      if (host.closing.aborted) return;
      const live = await startOwed(host, vm.id);
      if (live !== undefined) started.push(live);
    }
    const deadline = AbortSignal.any([AbortSignal.timeout(READY_MS), host.closing]);
    await Promise.all(started.map(live => raced(guestProvisioned(live, deadline), deadline).catch(() => {})));
  }
};
