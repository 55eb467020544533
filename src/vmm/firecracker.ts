/**
 * The `firecracker` driver: starts, adopts and finds Firecracker machines.
 *
 * A machine is configured through the API and not by a configuration file: the guest starts when its process is on record and
 * not before, a refusal names the part that was refused, and a name that is misspelt is refused at all (in the file
 * Firecracker ignores it). It costs half a dozen requests on one connection, a few milliseconds.
 */
import { isAbsolute } from 'node:path';
import { Driver, type DriverOptions } from './driver.ts';
import { configuration, firecrackerArgv, kernelCmdline, passedPath } from './firecracker_config.ts';
import { FIRECRACKER_PROGRAM, gatherFacts } from './firecracker_facts.ts';
import { FirecrackerMachine } from './firecracker_machine.ts';
import type { HostFacts } from './host_facts.ts';
import type { Vmm } from './machine.ts';
import { COUNTED, METRICS_FIFO } from './run_dir.ts';
import { type PassedFds, spawnVmm } from './spawn.ts';

const ANSWER_MS = 20_000;

export interface FirecrackerOptions extends DriverOptions {
  /** As it was found last. */
  host: () => HostFacts;
  /** A program, or who says which one it is now: its files are the daemon's own, and undefined is the usual one. */
  program?: string | (() => Promise<string | undefined>);
  /** Added to the little that the VMM gets of our environment (PATH): the rest may hold secrets. */
  env?: Record<string, string>;
}

export const openFirecracker = (options: FirecrackerOptions): Promise<Vmm> => {
  const { host, program = FIRECRACKER_PROGRAM, answer_ms = ANSWER_MS } = options;
  const env = { PATH: process.env.PATH, LANG: 'C.UTF-8', ...options.env };
  return Driver.open<FirecrackerMachine>(
    {
      kind: 'firecracker',
      name: 'Firecracker',
      ask: async () => {
        const now = typeof program === 'string' ? program : ((await program()) ?? FIRECRACKER_PROGRAM);
        return gatherFacts({ host: host(), program: now, env });
      },
      spawn: async (spec, { dir, facts, accel, cgroup }) => {
        kernelCmdline(spec); // refused before anything is there
        await dir.give(METRICS_FIFO);
        dir.makeOwnLog();
        await dir.remove(COUNTED);
        dir.empty(METRICS_FIFO); // a keeper may have kept what an earlier one counted
        const admitted = spec.program ?? facts.program;
        const own = typeof program === 'string' || !isAbsolute(admitted) ? undefined : admitted;
        const argv = (fds: PassedFds) =>
          firecrackerArgv(spec, fds.program === undefined ? admitted : passedPath(fds.program));
        const { child, fds } = await spawnVmm({
          spec,
          dir,
          accel,
          env,
          cgroup,
          reopens_disks: true,
          program: own,
          argv,
        });
        const puts = configuration(spec, fds);
        return {
          child,
          answer: (machine, signal) => machine.configure(puts, answer_ms, signal),
          go: (machine, signal) => machine.go(signal),
        };
      },
      hold: parts => new FirecrackerMachine(parts),
    },
    options,
  );
};
