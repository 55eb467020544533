/** The `qemu` driver: starts, adopts and finds QEMU machines. */
import { raced } from '../lib/deadline.ts';
import { Driver, type DriverOptions } from './driver.ts';
import type { HostFacts } from './host_facts.ts';
import type { Vmm } from './machine.ts';
import { qemuArgs } from './qemu_args.ts';
import { gatherFacts, QEMU_PROGRAM } from './qemu_facts.ts';
import { QemuMachine } from './qemu_machine.ts';
import { spawnVmm } from './spawn.ts';

const ANSWER_MS = 20_000;

export interface QemuOptions extends DriverOptions {
  /** As it was found last. */
  host: () => HostFacts;
  program?: string;
  /** Added to the little that the VMM gets of our environment (PATH, QEMU_*): the rest may hold secrets. */
  env?: Record<string, string>;
}

/** QEMU's own variables, such as QEMU_MODULE_DIR of one that was built by hand. */
const qemuVariables = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('QEMU_')));

export const openQemu = (options: QemuOptions): Promise<Vmm> => {
  const { host, program = QEMU_PROGRAM, answer_ms = ANSWER_MS } = options;
  const env = { PATH: process.env.PATH, LANG: 'C.UTF-8', ...qemuVariables(), ...options.env };
  return Driver.open<QemuMachine>(
    {
      kind: 'qemu',
      name: 'QEMU',
      ask: () => gatherFacts({ host: host(), program, env }),
      spawn: async (spec, { dir, facts, accel, cgroup }) => {
        const argv = (fds: Parameters<typeof qemuArgs>[2]) => [spec.program ?? program, ...qemuArgs(spec, facts, fds)];
        const { child } = await spawnVmm({ spec, dir, accel, env, cgroup, reopens_disks: false, argv });
        return {
          child,
          answer: (machine, signal) => machine.connect(answer_ms, signal),
          go: (machine, signal) => raced(machine.resume(), signal),
        };
      },
      hold: parts => new QemuMachine(parts),
    },
    options,
  );
};
