/** The drivers of this host, and which one starts a VM. */
import { Fault } from '../api/fault.ts';
import type { VmmKind } from '../api/vm.ts';
import type { Cgroups } from '../lib/cgroup.ts';
import type { Log } from '../lib/log.ts';
import type { Step } from '../lib/step.ts';
import { findVmms } from './find.ts';
import { openFirecracker } from './firecracker.ts';
import { gatherHostFacts, type HostFacts } from './host_facts.ts';
import type { Vmm, VmmFacts, Vmms } from './machine.ts';
import { openQemu } from './qemu.ts';

export interface DriversOptions {
  /** Path of `nexus-probe`. */
  probe: string;
  /** The QEMU program; default: from PATH. */
  qemu?: string | undefined;
  /** The Firecracker program; default: from PATH. */
  firecracker?: string | undefined;
  log: Log;
  step: Step;
  cgroups?: Cgroups | undefined;
}

/** The drivers in the order in which they are chosen. */
export const openVmms = async (options: DriversOptions): Promise<Vmms & { readonly host: HostFacts }> => {
  const { log, step, cgroups, qemu, firecracker } = options;
  const host = await gatherHostFacts(options.probe, log);
  const all: readonly Vmm[] = await Promise.all([
    openFirecracker({ host, log, step, cgroups, ...(firecracker === undefined ? {} : { program: firecracker }) }),
    openQemu({ host, log, step, cgroups, ...(qemu === undefined ? {} : { program: qemu }) }),
  ]);
  const of = (kind: VmmKind): Vmm => {
    const driver = all.find(vmm => vmm.kind === kind);
    if (driver === undefined) throw new Fault('unsupported', `This Nexus has no driver for ${kind}.`);
    return driver;
  };
  return { host, all, of, choose: wish => choose(wish === null ? all : [of(wish)]), find: findVmms };
};

/** The first that can. One that could not is asked again before the next one's turn comes. */
const choose = async (candidates: readonly Vmm[]): Promise<Vmm> => {
  const unable: VmmFacts[] = [];
  for (const vmm of candidates) {
    const facts = vmm.facts().accel === null ? await vmm.refresh() : vmm.facts();
    if (facts.accel !== null) return vmm;
    unable.push(facts);
  }
  // of the last one: the VMM that needs least
  const hint = unable.findLast(facts => facts.hint !== undefined)?.hint;
  throw new Fault('host', `No VMM can run here: ${unable.map(facts => facts.why).join('; ')}.`, { hint });
};
