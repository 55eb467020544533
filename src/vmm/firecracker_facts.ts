/** What Firecracker on this host can do. */
import type { HostFacts } from './host_facts.ts';
import type { VmmFacts } from './machine.ts';
import { versionOf } from './version.ts';

export const FIRECRACKER_PROGRAM = 'firecracker';
const HINT = 'nexusctl firecracker download (or name one in NEXUS_FIRECRACKER)';

export interface FactsOptions {
  program: string;
  env: NodeJS.ProcessEnv;
  host: HostFacts;
}

/** Firecracker has no emulation: without KVM it runs nothing. */
export const gatherFacts = async (options: FactsOptions): Promise<VmmFacts> => {
  const { host, program } = options;
  const base = { kind: 'firecracker', program, tsc_khz: host.tsc_khz } as const;
  const found = await versionOf('Firecracker', program, options.env, /Firecracker v(\d+\.\d+\S*)/);
  if ('why' in found) return { ...base, accel: null, version: null, why: found.why, hint: HINT };
  const { kvm } = host;
  if (kvm.usable) return { ...base, ...found, accel: 'kvm', why: kvm.why };
  return {
    ...base,
    ...found,
    accel: null,
    why: `Firecracker needs KVM: ${kvm.why}`,
    ...(kvm.hint === undefined ? {} : { hint: kvm.hint }),
  };
};
