/** What QEMU on this host can do, asked once. */
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import type { Log } from '../lib/log.ts';
import { RunError, run } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import type { VmmFacts } from './machine.ts';

export const QEMU_PROGRAM = 'qemu-system-x86_64';
const APT_HINT = 'apt-get install --no-install-recommends qemu-system-x86';
const PROBE_MS = 20_000;

const Kvm = z.looseObject({ usable: z.boolean(), reason: z.string(), detail: z.string().default('') });
const Tsc = z.looseObject({ khz: z.number().int().positive().nullable() });

export interface FactsOptions {
  /** Path of `nexus-probe`. */
  probe: string;
  program: string;
  env: NodeJS.ProcessEnv;
  log: Log;
}

const versionOf = async ({ program, env }: FactsOptions): Promise<string> => {
  try {
    const { stdout } = await run([program, '--version'], { timeout_ms: PROBE_MS, env });
    const version = /version (\d+\.\d+\S*)/.exec(stdout)?.[1];
    if (version !== undefined) return version;
    throw new Fault('host', `Cannot use ${program} as VMM: it does not say its version.`);
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    throw new Fault('host', `Cannot find QEMU: ${error.message}.`, { hint: APT_HINT, cause: error });
  }
};

/** Asks the probe; undefined, and a line in the log, if it fails: what it finds out is a matter of speed, not of function. */
const ask = async <T>(options: FactsOptions, what: string, schema: z.ZodType<T>): Promise<T | undefined> => {
  try {
    const { stdout } = await run([options.probe, what], { timeout_ms: PROBE_MS });
    return schema.parse(JSON.parse(stdout));
  } catch (error) {
    options.log.warn({ err: error, probe: what }, 'the probe of this host failed');
    return undefined;
  }
};

const hintFor = (reason: string | undefined): string =>
  reason === 'no-permission'
    ? 'usermod -aG kvm <user>, then log in again: guests run at full speed with access to /dev/kvm'
    : 'a host on which /dev/kvm runs guests is many times faster';

export const gatherFacts = async (options: FactsOptions): Promise<VmmFacts> => {
  if (process.arch !== 'x64') {
    throw new Fault('unsupported', `Cannot run QEMU's microvm machine on ${process.arch}: it exists on x86_64 alone.`);
  }
  const [version, kvm, tsc] = await Promise.all([
    versionOf(options),
    ask(options, 'kvm', Kvm),
    ask(options, 'tsc', Tsc),
  ]);
  const base = { kind: 'qemu', program: options.program, version, tsc_khz: tsc?.khz ?? null } as const;
  if (kvm?.usable === true) return { ...base, accel: 'kvm', why: 'KVM runs guests on this host' };
  const reason = kvm === undefined ? 'it could not be tried' : plain(kvm.detail || kvm.reason).replace(/\.$/, '');
  return {
    ...base,
    accel: 'tcg',
    why: `guests are emulated because KVM does not work here: ${reason}`,
    hint: hintFor(kvm?.reason),
  };
};
