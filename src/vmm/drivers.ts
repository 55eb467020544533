/** The drivers of this host, and which one starts a VM. */
import { Fault } from '../api/fault.ts';
import type { VmmKind } from '../api/vm.ts';
import type { Log } from '../lib/log.ts';
import type { Step } from '../lib/step.ts';
import { gatherHostFacts, type HostFacts } from './host_facts.ts';
import type { Vmm, Vmms } from './machine.ts';
import { openQemu } from './qemu.ts';

export interface DriversOptions {
  /** Path of `nexus-probe`. */
  probe: string;
  /** The QEMU program; default: from PATH. */
  qemu?: string | undefined;
  log: Log;
  step: Step;
}

/** The drivers in the order in which they are chosen. */
export const openVmms = async (options: DriversOptions): Promise<Vmms & { readonly host: HostFacts }> => {
  const { log, step, qemu } = options;
  const host = await gatherHostFacts(options.probe, log);
  const all: readonly Vmm[] = [await openQemu({ host, log, step, ...(qemu === undefined ? {} : { program: qemu }) })];
  const of = (kind: VmmKind): Vmm => {
    const driver = all.find(vmm => vmm.kind === kind);
    if (driver === undefined) throw new Fault('unsupported', `This Nexus has no driver for ${kind}.`);
    return driver;
  };
  return {
    host,
    all,
    of,
    choose: wish => choose(wish === null ? all : [of(wish)]),
    find: async run_root => (await Promise.all(all.map(vmm => vmm.find(run_root)))).flat(),
  };
};

const choose = (candidates: readonly Vmm[]): Vmm => {
  const able = candidates.find(vmm => vmm.facts().accel !== null);
  if (able !== undefined) return able;
  const facts = candidates.map(vmm => vmm.facts());
  const hint = facts.find(f => f.hint !== undefined)?.hint;
  throw new Fault('host', `No VMM can run here: ${facts.map(f => f.why).join('; ')}.`, { hint });
};
