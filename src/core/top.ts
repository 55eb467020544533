/** What running VMs use, as a stream of samples. */
import type { OpIn } from '../api/ops.ts';
import type { Vm } from '../api/vm.ts';
import type { VmLoad, VmTopMessage, VmUsage } from '../api/vm_inspect.ts';
import { VM_LIVE } from '../api/vm_state.ts';
import { pause } from '../lib/deadline.ts';
import { needVm } from './find.ts';
import type { Host } from './host.ts';
import { liveOf } from './live.ts';
import { usageOf } from './usage.ts';

/** The first sample comes so soon: rates need two looks. */
const FIRST_MS = 500;

interface Look {
  vm: Vm;
  /** By `performance.now()`. */
  at: number;
  usage: VmUsage | undefined;
}

export const vmTop = async function* (
  host: Host,
  { vm: refs, interval_ms, count }: OpIn<'vm.top'>,
  signal: AbortSignal,
): AsyncGenerator<VmTopMessage> {
  const wanted = refs && new Set(await Promise.all(refs.map(async ref => (await needVm(host, ref)).id)));
  let before = await look(host, wanted);
  for (let n = 0; count === undefined || n < count; n++) {
    await pause(n === 0 ? Math.min(FIRST_MS, interval_ms) : interval_ms, signal);
    const now = await look(host, wanted);
    const vms = [...now.values()].map(one => loadOf(one, before.get(one.vm.id)));
    yield { type: 'sample', at_ms: Date.now(), vms: vms.sort((a, b) => a.name.localeCompare(b.name)) };
    before = now;
  }
};

/** Side by side: a silent VMM keeps no other waiting. */
const look = async (host: Host, wanted: ReadonlySet<string> | undefined): Promise<Map<string, Look>> => {
  const vms = (await host.store.listVms()).filter(vm => wanted?.has(vm.id) ?? VM_LIVE.includes(vm.state));
  const looks = vms.map(async (vm): Promise<[string, Look]> => {
    const live = liveOf(host, vm.id);
    const usage = live && (await usageOf(host, live));
    return [vm.id, { vm, usage, at: performance.now() }];
  });
  return new Map(await Promise.all(looks));
};

const loadOf = ({ vm, at, usage }: Look, before: Look | undefined): VmLoad => {
  const { id, name, state, guest, vcpus, memory_mib } = vm;
  const same = before?.vm.pid === vm.pid ? before : undefined; // what another process used says nothing of this one
  const rate = (now: number | null | undefined, then: number | null | undefined): number | null =>
    now == null || then == null || same === undefined ? null : Math.max(0, (now - then) / ((at - same.at) / 1000));
  const whole = (value: number | null) => (value === null ? null : Math.round(value));
  const cpu = rate(usage?.cpu_ms, same?.usage?.cpu_ms);
  return {
    id,
    name,
    state,
    guest,
    vcpus,
    memory_mib,
    cpu_percent: cpu === null ? null : Math.round(cpu) / 10,
    memory_bytes: usage?.memory_bytes ?? null,
    disk_read_rate_bytes: whole(rate(usage?.disk_read_bytes, same?.usage?.disk_read_bytes)),
    disk_write_rate_bytes: whole(rate(usage?.disk_write_bytes, same?.usage?.disk_write_bytes)),
    uptime_ms: uptimeOf(vm),
  };
};

/** Since its VMM runs; null: it does not. */
export const uptimeOf = ({ state, started_at_ms }: Vm): number | null =>
  started_at_ms === null || state === 'starting' || !VM_LIVE.includes(state)
    ? null
    : Math.max(0, Date.now() - started_at_ms);
