import { dirname } from 'node:path';
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import type { VmmKind } from '../api/vm.ts';
import type { VmmFacts } from '../vmm/machine.ts';
import { examine } from './doctor.ts';
import { collect } from './gc.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';

/** Of the driver that starts a VM without a wish of its own; of the first where none can. */
const defaultVmm = ({ vmms }: Host): VmmFacts => {
  const facts = vmms.all.map(vmm => vmm.facts());
  const found = facts.find(f => f.accel !== null) ?? facts[0];
  if (found === undefined) throw new Fault('unsupported', 'This Nexus has no VMM driver.');
  return found;
};

export const daemonHandlers = (host: Host): HandlersOf<'daemon'> => ({
  'daemon.get': async () => {
    const vms: Record<string, number> = {};
    for (const vm of await host.store.listVms()) vms[vm.state] = (vms[vm.state] ?? 0) + 1;
    const { kind, program, version, accel, why, hint } = defaultVmm(host);
    return {
      version: host.version,
      pid: process.pid,
      data_dir: host.paths.data,
      started_at_ms: host.started_at_ms,
      node: process.versions.node,
      vmm: { kind, program, version, accel, why, ...(hint === undefined ? {} : { hint }) },
      disk: { backend: host.disks.backend, why: host.disks.why },
      vms,
    };
  },
  'daemon.doctor': () => {
    const program = (kind: VmmKind) => host.vmms.of(kind).facts().program;
    return examine({
      data_dir: host.paths.data,
      agent_dir: dirname(host.agent.path),
      qemu: program('qemu'),
      firecracker: program('firecracker'),
      log: host.log,
      host,
    });
  },
  'daemon.gc': (_ctx, { dry_run }) => collect(host, dry_run),
  'daemon.ping': async () => ({}),
});
