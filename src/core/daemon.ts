import process from 'node:process';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';

export const daemonHandlers = (host: Host): HandlersOf<'daemon'> => ({
  'daemon.get': async () => {
    const vms: Record<string, number> = {};
    for (const vm of await host.store.listVms()) vms[vm.state] = (vms[vm.state] ?? 0) + 1;
    const { kind, program, version, accel, why, hint } = host.vmm.facts();
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
  'daemon.ping': async () => ({}),
});
