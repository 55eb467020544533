/** What QEMU on this host can do, asked once. */
import type { HostFacts } from './host_facts.ts';
import type { VmmFacts } from './machine.ts';
import { versionOf } from './version.ts';

export const QEMU_PROGRAM = 'qemu-system-x86_64';
const APT_HINT = 'apt-get install --no-install-recommends qemu-system-x86';

export interface FactsOptions {
  program: string;
  env: NodeJS.ProcessEnv;
  host: HostFacts;
}

export const gatherFacts = async (options: FactsOptions): Promise<VmmFacts> => {
  const { host, program } = options;
  const base = { kind: 'qemu', program, tsc_khz: host.tsc_khz } as const;
  if (process.arch !== 'x64') {
    const why = `QEMU's microvm machine exists on x86_64 alone, and this host is ${process.arch}`;
    return { ...base, accel: null, version: null, why };
  }
  const found = await versionOf('QEMU', program, options.env, /version (\d+\.\d+\S*)/);
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
