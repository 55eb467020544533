/** Landing: a half-made thing lives under tmp/ and gets its name only when it is whole. */
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ensureDir, publish, removeTree } from '../lib/files.ts';
import { RunError } from '../lib/proc.ts';
import type { Step } from '../lib/step.ts';
import type { Host } from './host.ts';

/** Makes a private folder for a job, gives it to `work`, and removes it whatever happens. */
export const inTemp = async <T>(host: Host, name: string, work: (dir: string) => Promise<T>): Promise<T> => {
  const dir = await host.step('job.temp', () => ensureDir(join(host.paths.tmp, name), 0o700));
  try {
    return await work(dir);
  } catch (error) {
    throw diskFull(error, host.paths.data);
  } finally {
    // what was made stands: what is left here, the next start of a daemon sweeps
    await host
      .step('job.tidy', () => removeTree(host.paths.data, dir))
      .catch(error => host.log.error({ err: error, dir }, 'cannot remove the temporary folder of a job'));
  }
};

/** Gives a finished folder its place. The record follows; a folder without record is swept at the next start. */
export const landDir = (temp: string, final: string): Promise<void> => publish(temp, final);

const FULL: readonly unknown[] = ['ENOSPC', 'EDQUOT'];
/** What programs say of it. */
const FULL_WORDS = /no space left on device|disk quota exceeded/i;

/** An error of a full disk as the fault that it is; any other as it was. */
export const diskFull = (error: unknown, where: string): unknown => {
  if (!(error instanceof Error) || error instanceof Fault) return error;
  const full =
    error instanceof RunError ? FULL_WORDS.test(error.message) : 'code' in error && FULL.includes(error.code);
  if (!full) return error;
  return new Fault('no_room', `The disk that holds ${where} is full.`, { hint: 'free some space there', cause: error });
};

/** Steps that find the disk full say so, whatever it was that they did. */
export const fullSteps =
  (step: Step, where: string): Step =>
  (name, work) =>
    step(name, work).catch(error => {
      throw diskFull(error, where);
    });
