/** What QEMU on this host can do, asked once. */
import { RunError, run } from '../lib/proc.ts';
import type { HostFacts } from './host_facts.ts';
import type { VmmFacts } from './machine.ts';

export const QEMU_PROGRAM = 'qemu-system-x86_64';
const APT_HINT = 'apt-get install --no-install-recommends qemu-system-x86';
const VERSION_MS = 20_000;

export interface FactsOptions {
  program: string;
  env: NodeJS.ProcessEnv;
  host: HostFacts;
}

/** The version, or why there is none. */
const versionOf = async ({ program, env }: FactsOptions): Promise<{ version: string } | { why: string }> => {
  try {
    const { stdout } = await run([program, '--version'], { timeout_ms: VERSION_MS, env });
    const version = /version (\d+\.\d+\S*)/.exec(stdout)?.[1];
    return version === undefined ? { why: `${program} does not say its version` } : { version };
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    return { why: `there is no QEMU: ${error.message.replace(/\.$/, '')}` };
  }
};

export const gatherFacts = async (options: FactsOptions): Promise<VmmFacts> => {
  const { host, program } = options;
  const base = { kind: 'qemu', program, tsc_khz: host.tsc_khz } as const;
  if (process.arch !== 'x64') {
    const why = `QEMU's microvm machine exists on x86_64 alone, and this host is ${process.arch}`;
    return { ...base, accel: null, version: null, why };
  }
  const found = await versionOf(options);
  if ('why' in found) return { ...base, accel: null, version: null, why: found.why, hint: APT_HINT };
  const { kvm } = host;
  if (kvm.usable) return { ...base, ...found, accel: 'kvm', why: kvm.why };
  return {
    ...base,
    ...found,
    accel: 'tcg',
    why: `guests are emulated because KVM does not work here: ${kvm.why}`,
    ...(kvm.hint === undefined ? {} : { hint: kvm.hint }),
  };
};
