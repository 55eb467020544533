/** What Firecracker on this host can do. */
import { RunError, run } from '../lib/proc.ts';
import type { HostFacts } from './host_facts.ts';
import type { VmmFacts } from './machine.ts';

export const FIRECRACKER_PROGRAM = 'firecracker';
const VERSION_MS = 20_000;
const HINT = 'put a release of Firecracker in PATH as `firecracker`, or name it in NEXUS_FIRECRACKER';

export interface FactsOptions {
  program: string;
  env: NodeJS.ProcessEnv;
  host: HostFacts;
}

/** The version, or why there is none. */
const versionOf = async ({ program, env }: FactsOptions): Promise<{ version: string } | { why: string }> => {
  try {
    const { stdout } = await run([program, '--version'], { timeout_ms: VERSION_MS, env });
    const version = /Firecracker v(\d+\.\d+\S*)/.exec(stdout)?.[1];
    return version === undefined ? { why: `${program} does not say its version` } : { version };
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    return { why: `there is no Firecracker: ${error.message.replace(/\.$/, '')}` };
  }
};

/** Firecracker has no emulation: without KVM it runs nothing. */
export const gatherFacts = async (options: FactsOptions): Promise<VmmFacts> => {
  const { host, program } = options;
  const base = { kind: 'firecracker', program, tsc_khz: host.tsc_khz } as const;
  const found = await versionOf(options);
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
