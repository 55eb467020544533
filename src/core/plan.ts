/** What a daemon must do at its start, as a pure function of what it finds and what is written. */
import type { VmmKind } from '../api/vm.ts';
import { VM_LIVE, type VmState } from '../api/vm_state.ts';

export interface WantedVm {
  id: string;
  state: VmState;
  run: { pid: number; start_ticks: number; boot_id: string } | null;
}

export interface FoundVmm {
  kind: VmmKind;
  vm_id: string;
  proc: { pid: number; start_ticks: number; boot_id: string };
}

export type Step =
  /** A VMM that nobody may own: its VM is unknown, not live, or it is not the process that was recorded. */
  | { do: 'end'; vm_id: string; proc: FoundVmm['proc']; why: string }
  | { do: 'adopt'; vm_id: string; kind: VmmKind; proc: FoundVmm['proc']; stopping: boolean }
  /** `judged`: what was said last may tell another end, and so another state. */
  | { do: 'write'; vm_id: string; to: VmState; why: string; judged?: boolean };

const same = (a: FoundVmm['proc'], b: WantedVm['run']): boolean =>
  b !== null && a.pid === b.pid && a.start_ticks === b.start_ticks && a.boot_id === b.boot_id;

/**
 * Ends come first: no disk is touched while a stranger may write to it. `boot_id`: of the host now; `rebooted`: it was another one when the
 * last daemon looked.
 */
export const plan = (
  found: readonly FoundVmm[],
  wanted: readonly WantedVm[],
  boot_id: string,
  rebooted: boolean,
): Step[] => {
  const ends: Step[] = [];
  const rest: Step[] = [];
  const byId = new Map(wanted.map(vm => [vm.id, vm]));
  const adoptable = new Map<string, FoundVmm>();
  for (const f of found) {
    const vm = byId.get(f.vm_id);
    const ours = vm !== undefined && same(f.proc, vm.run);
    const keep = ours && (vm.state === 'running' || vm.state === 'paused' || vm.state === 'stopping');
    if (keep) adoptable.set(f.vm_id, f);
    else ends.push({ do: 'end', vm_id: f.vm_id, proc: f.proc, why: endWhy(vm, ours) });
  }
  for (const vm of wanted) {
    if (!VM_LIVE.includes(vm.state)) continue;
    const f = adoptable.get(vm.id);
    if (f !== undefined) {
      rest.push({ do: 'adopt', vm_id: vm.id, kind: f.kind, proc: f.proc, stopping: vm.state === 'stopping' });
    } else if (vm.state === 'starting') {
      const what = rebooted ? 'host was restarted' : 'daemon ended';
      rest.push({ do: 'write', vm_id: vm.id, to: 'failed', why: `The ${what} during the start.` });
    } else if (vm.state === 'stopping') {
      const why = rebooted ? 'The host was restarted during the stop.' : 'It ended while no daemon was there.';
      rest.push({ do: 'write', vm_id: vm.id, to: 'stopped', why });
    } else {
      const judged = vm.run === null ? !rebooted : vm.run.boot_id === boot_id;
      const why = judged
        ? 'The VMM ended while no daemon was there; its exit status is unknown.'
        : 'The host was restarted.';
      rest.push({ do: 'write', vm_id: vm.id, to: 'crashed', why, judged });
    }
  }
  return [...ends, ...rest];
};

const endWhy = (vm: WantedVm | undefined, ours: boolean): string => {
  if (vm === undefined) return 'its VM is unknown';
  if (!VM_LIVE.includes(vm.state)) return `its VM is ${vm.state}`;
  return ours ? `its VM was ${vm.state}` : 'it is not the process that was recorded';
};
