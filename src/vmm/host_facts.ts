/** What the drivers must know of this host. */
import { readFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { z } from 'zod';
import type { Log } from '../lib/log.ts';
import { run } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';

const PROBE_MS = 20_000;

const Kvm = z.looseObject({ usable: z.boolean(), reason: z.string(), detail: z.string().default('') });
const Tsc = z.looseObject({ khz: z.number().int().positive().nullable() });

export interface HostFacts {
  kvm: {
    usable: boolean;
    /** As `nexus-probe` says it: `no-device`, `no-permission`, `guest-does-not-run`, …; `not-tried` without a probe. */
    reason: string;
    /** One sentence without its period. */
    why: string;
    /** The command that mends it, where there is one. */
    hint?: string;
  };
  /** Rate of the time stamp counter. */
  tsc_khz: number | null;
}

/** Asks the probe; undefined, and a line in the log, if it fails: what it finds out is a matter of speed, not of function. */
const ask = async <T>(probe: string, what: string, schema: z.ZodType<T>, log: Log): Promise<T | undefined> => {
  try {
    const { stdout } = await run([probe, what], { timeout_ms: PROBE_MS });
    return schema.parse(JSON.parse(stdout));
  } catch (error) {
    log.warn({ err: error, probe: what }, 'the probe of this host failed');
    return undefined;
  }
};

/** The flag of a processor that runs guests, and the module of the kernel for it. */
const MODULES = { vmx: 'kvm_intel', svm: 'kvm_amd' };

const hintFor = async (reason: string): Promise<string> => {
  if (reason === 'no-permission') return `usermod -aG kvm ${userInfo().username}, then log in again`;
  if (reason !== 'no-device') return 'take a host on which /dev/kvm runs guests: it is many times faster';
  const flags = /^flags\s*:(.*)$/m.exec(await readFile('/proc/cpuinfo', 'utf8').catch(() => ''))?.[1]?.split(' ') ?? [];
  const found = Object.entries(MODULES).find(([flag]) => flags.includes(flag));
  if (found !== undefined) return `modprobe ${found[1]}`;
  return 'switch on virtualization in the firmware, or take a machine with (nested) virtualization: it is many times faster';
};

export const gatherHostFacts = async (probe: string, log: Log): Promise<HostFacts> => {
  const [kvm, tsc] = await Promise.all([ask(probe, 'kvm', Kvm, log), ask(probe, 'tsc', Tsc, log)]);
  const tsc_khz = tsc?.khz ?? null;
  if (kvm?.usable === true)
    return { kvm: { usable: true, reason: 'ok', why: 'KVM runs guests on this host' }, tsc_khz };
  const reason = kvm?.reason ?? 'not-tried';
  const why = kvm === undefined ? 'it could not be tried' : plain(kvm.detail || kvm.reason).replace(/\.$/, '');
  return { kvm: { usable: false, reason, why, hint: await hintFor(reason) }, tsc_khz };
};

/** A KVM that works can look broken to a probe on a host too busy to run it in time, and one that is broken can be mended. */
const AGAIN_MS = 60_000;

/** The facts as they were found last. INVARIANT: the probe runs once at a time. */
export class HostProbe {
  readonly #probe: string;
  readonly #log: Log;
  #facts: HostFacts;
  #asked = performance.now();
  #asking: Promise<HostFacts> | undefined;

  private constructor(probe: string, log: Log, facts: HostFacts) {
    this.#probe = probe;
    this.#log = log;
    this.#facts = facts;
  }

  static async open(probe: string, log: Log): Promise<HostProbe> {
    return new HostProbe(probe, log, await gatherHostFacts(probe, log));
  }

  get facts(): HostFacts {
    return this.#facts;
  }

  /** KVM did not work, and that was some time ago. */
  get doubtful(): boolean {
    return !this.#facts.kvm.usable && this.#asking === undefined && performance.now() - this.#asked > AGAIN_MS;
  }

  /** Asks again. */
  again(): Promise<HostFacts> {
    this.#asking ??= gatherHostFacts(this.#probe, this.#log)
      .then(facts => {
        this.#facts = facts;
        return facts;
      })
      .finally(() => {
        this.#asked = performance.now();
        this.#asking = undefined;
      });
    return this.#asking;
  }
}
