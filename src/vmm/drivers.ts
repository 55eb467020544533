/** The drivers of this host, and which one starts a VM. */
import { Fault } from '../api/fault.ts';
import type { VmmKind } from '../api/vm.ts';
import type { Cgroups } from '../lib/cgroup.ts';
import type { Log } from '../lib/log.ts';
import type { Step } from '../lib/step.ts';
import { findVmms } from './find.ts';
import { openFirecracker } from './firecracker.ts';
import { type HostFacts, HostProbe } from './host_facts.ts';
import type { Vmm, Vmms } from './machine.ts';
import { openQemu } from './qemu.ts';

export interface DriversOptions {
  /** Path of `nexus-probe`. */
  probe: string;
  /** The QEMU program; default: from PATH. */
  qemu?: string | undefined;
  /** The Firecracker program, or who says which one it is now; default: from PATH. */
  firecracker?: string | (() => Promise<string | undefined>) | undefined;
  log: Log;
  step: Step;
  cgroups?: Cgroups | undefined;
}

/** The drivers in the order in which they are chosen. */
export const openVmms = async (options: DriversOptions): Promise<Vmms & { readonly host: HostFacts }> => {
  const { log, step, cgroups, qemu, firecracker } = options;
  const probe = await HostProbe.open(options.probe, log);
  const host = () => probe.facts;
  const all: readonly Vmm[] = await Promise.all([
    openFirecracker({ host, log, step, cgroups, ...(firecracker === undefined ? {} : { program: firecracker }) }),
    openQemu({ host, log, step, cgroups, ...(qemu === undefined ? {} : { program: qemu }) }),
  ]);
  const of = (kind: VmmKind): Vmm => {
    const driver = all.find(vmm => vmm.kind === kind);
    if (driver === undefined) throw new Fault('unsupported', `This Nexus has no driver for ${kind}.`);
    return driver;
  };
  const askAgain = async (): Promise<void> => {
    if ((await probe.again()).kvm.usable) await Promise.all(all.map(vmm => vmm.refresh()));
  };
  return {
    get host() {
      return probe.facts;
    },
    all,
    of,
    find: findVmms,
    choose: async wish => {
      const candidates = wish === null ? all : [of(wish)];
      // this start does not wait for it; a later one may be the faster for it
      if (probe.doubtful) askAgain().catch(error => log.warn({ err: error }, 'this host could not be asked again'));
      let able = await firstAble(candidates);
      if (able === undefined && !probe.facts.kvm.usable) {
        await askAgain();
        able = await firstAble(candidates);
      }
      if (able === undefined) throw noneCan(candidates);
      return able;
    },
  };
};

/** The first that can. One whose program was missing is looked for again. */
const firstAble = async (candidates: readonly Vmm[]): Promise<Vmm | undefined> => {
  for (const vmm of candidates) {
    const facts = vmm.facts().version === null ? await vmm.refresh() : vmm.facts();
    if (facts.accel !== null) return vmm;
  }
  return undefined;
};

const noneCan = (candidates: readonly Vmm[]): Fault => {
  const facts = candidates.map(vmm => vmm.facts());
  // of the last one: the VMM that needs least
  const hint = facts.findLast(f => f.hint !== undefined)?.hint;
  return new Fault('host', `No VMM can run here: ${facts.map(f => f.why).join('; ')}.`, { hint });
};
