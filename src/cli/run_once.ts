/**
 * `nexusctl run`: a VM for one command.
 *
 * INVARIANTS: until the command is asked for a signal ends what is being done; from then on it is the command's, as with `exec`. In both
 * cases the VM is deleted before we end; where we are killed the daemon does it, for nobody holds the VM then.
 */
import { constants } from 'node:os';
import { Fault } from '../api/fault.ts';
import { checkJob } from '../client/job.ts';
import { freshName, type MachineOptions } from '../client/machine.ts';
import { type Cli, fail, note } from './cli.ts';
import { EXIT_NEXUS, execCommand, type Way } from './exec.ts';
import { watchJob } from './job.ts';
import { OF_EXEC, OF_VM } from './run_inputs.ts';
import { onSignals } from './signals.ts';

/** How long its guest may take to answer, as with `up`. */
const START_MS = 300_000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;

const imageId = async (cli: Cli, ref: string, signal: AbortSignal): Promise<string> => {
  const { image_id, job } = await cli.nexus.image.ensure({ image: ref }, { signal });
  if (image_id !== null) return image_id;
  if (job === null) throw new Fault('internal', `The daemon has neither image nor job for '${ref}'.`);
  note(`${ref}: its image is made, for this and later runs (job ${job.id})\n`);
  const { result_id } = checkJob(await watchJob(cli.nexus, job.id, signal));
  if (result_id === null) throw new Fault('internal', `Job ${job.id} made no image.`);
  return result_id;
};

/** A machine, or the end of it by a signal: then the exit code is that of the signal. */
const machineFor = async (cli: Cli, image: string, options: Record<string, unknown>) => {
  const abort = new AbortController();
  using _ = onSignals(SIGNALS, name => {
    cli.code = 128 + constants.signals[name];
    abort.abort(new Fault('canceled', `Ended by ${name}: nothing was run.`));
  });
  const { signal } = abort;
  const chosen: MachineOptions = { ...options, image: await imageId(cli, image, signal) };
  return await cli.nexus.machine({ ...chosen, name: freshName('run'), timeout_ms: START_MS, signal });
};

export const runOnce = async (cli: Cli, input: Record<string, unknown>, way: Way): Promise<void> => {
  const entries = Object.entries(input);
  const options = Object.fromEntries(entries.filter(([name]) => OF_VM.includes(name)));
  const command = Object.fromEntries(entries.filter(([name]) => OF_EXEC.includes(name)));
  try {
    await using box = await machineFor(cli, String(input.image), options);
    await execCommand(cli, { vm: box.id, ...command }, { ...way, when_left: 'its VM is deleted.' });
  } catch (error) {
    fail(cli, error);
    cli.code ||= EXIT_NEXUS;
  }
};
