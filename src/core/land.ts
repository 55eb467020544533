/** Landing: a half-made thing lives under tmp/ and gets its name only when it is whole. */
import { readdir, readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ensureDir, publish, removeTree, writeAtomic } from '../lib/files.ts';
import { RunError } from '../lib/proc.ts';
import type { Step } from '../lib/step.ts';
import type { Host } from './host.ts';

/** Makes a private folder for a job, gives it to `work`, and removes it whatever happens. */
export const inTemp = async <T>(host: Host, name: string, work: (dir: string) => Promise<T>): Promise<T> => {
  using _used = host.uses.use(name);
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

/** In the folder of a job: the path of what it makes outside the data directory. */
const OUTSIDE = 'outside';

/** A path for the half-made file of a job in somebody else's folder `dir`. It is noted first: what a killed daemon leaves there is found. */
export const besideIn = async (host: Host, dir: string, job_id: string): Promise<string> => {
  const path = join(dir, halfName(job_id));
  const temp = await ensureDir(join(host.paths.tmp, job_id), 0o700);
  await host.step('job.outside', () => writeAtomic(join(temp, OUTSIDE), path));
  return path;
};

/** Not longer than a name may be, whatever the job makes. */
const halfName = (job_id: string): string => `.nexus-${job_id}.part`;

/** Removes what jobs of an earlier daemon left outside the data directory; gives the paths. */
export const sweepOutside = async ({ paths }: Pick<Host, 'paths'>): Promise<string[]> => {
  const gone: string[] = [];
  for (const job_id of await readdir(paths.tmp)) {
    const path = await readFile(join(paths.tmp, job_id, OUTSIDE), 'utf8').catch(() => undefined);
    if (path === undefined || basename(path) !== halfName(job_id)) continue;
    await rm(path, { force: true });
    gone.push(path);
  }
  return gone;
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
