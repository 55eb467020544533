/** Images that come from files of the host, and go into them. */
import { link, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { Job } from '../api/job.ts';
import type { OpIn } from '../api/ops.ts';
import { examine, looksLikeExt4 } from '../images/foreign.ts';
import { hostArch } from '../lib/arch.ts';
import { exists, sha256File, syncDir, syncFile } from '../lib/files.ts';
import { plain } from '../lib/text.ts';
import { makeDisk, removeDisk } from './disk_notes.ts';
import { needImage } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import type { JobContext } from './jobs.ts';
import { besideIn, diskFull, inTemp } from './land.ts';
import { workEnv } from './stray.ts';
import { useAsset } from './using.ts';

/** The warning of an image in which no command can be run. */
export const NO_AGENT =
  'It has no guest agent (/usr/lib/nexus/nexus-agent): no command can be run in a VM of it, its console is all there is.';

export const importImage = async (host: Host, input: OpIn<'image.import'>): Promise<Job> => {
  await looksLikeExt4(input.from); // refused now, not later
  const what = { kind: 'image.import', subject: input.name, input };
  return host.jobs.start(what, job => takeIn(host, job, input));
};

/** The copy is what is looked at: the file may change meanwhile. */
const takeIn = async (host: Host, job: JobContext, input: OpIn<'image.import'>): Promise<string> => {
  const id = newId('img');
  const { name, from } = input;
  using _making = host.uses.use(id);
  job.progress({ stage: 'copy', done: 0, total: null, unit: 'bytes' });
  const path = await host.step('import.copy', () =>
    makeDisk(host, id, () => host.disks.importImage(from, id, job.signal)),
  );
  try {
    job.progress({ stage: 'check', done: 0, total: null, unit: 'steps' });
    const { signal, log: onLog } = job;
    const found = await inTemp(host, job.job_id, dir =>
      examine(path, { dir, env: workEnv(host.paths), signal, onLog }),
    );
    const sha256 = await sha256File(path, signal);
    const { size_bytes } = await host.disks.usage('images', id);
    const { os, agent_version } = found;
    const image: Image = {
      ...{ id, name, os, agent_version, size_bytes, sha256 },
      arch: input.arch ?? found.arch ?? hostArch() ?? 'x86_64',
      init: input.init ?? found.init,
      ...{ build_id: null, rootfs_id: null, created_at_ms: Date.now() },
      warning: agent_version === null ? NO_AGENT : null,
    };
    await host.step('import.insert', () => host.store.insertImage(image));
    if (image.warning !== null) job.log(image.warning);
    return id;
  } catch (error) {
    await removeDisk(host, id);
    throw error;
  }
};

const cannotExport = ({ name }: Image, code: 'exists' | 'invalid', why: string, cause?: unknown): Fault =>
  new Fault(code, `Cannot export image '${name}': ${why}.`, { cause });

export const exportImage = async (host: Host, image: Image, to: string): Promise<Job> => {
  if (await exists(to)) throw cannotExport(image, 'exists', `${plain(to)} exists already`);
  if (!(await exists(dirname(to)))) throw cannotExport(image, 'invalid', `there is no folder ${plain(dirname(to))}`);
  const what = { kind: 'image.export', subject: `${image.name} to ${plain(to)}`, input: { id: image.id, to } };
  return host.jobs.start(what, job => writeOut(host, job, image, to));
};

const copyOut = async (host: Host, { id }: Image, half: string, signal: AbortSignal): Promise<void> => {
  await host.disks.exportImage(id, half, signal);
  await syncFile(half);
};

/** What an export says is there survives the host. */
const linkTo = async (half: string, to: string): Promise<void> => {
  await link(half, to);
  await syncDir(dirname(to)).catch(async (error: unknown) => {
    if (error instanceof Error && 'code' in error && error.code === 'EINVAL') return; // not every file system syncs folders
    await rm(to, { force: true });
    throw error;
  });
};

/** Beside its place first, and linked there: what is there is never written over. */
const writeOut = (host: Host, job: JobContext, image: Image, to: string): Promise<string> =>
  inTemp(host, job.job_id, async () => {
    using _used = await useAsset(host, image, needImage);
    const half = await besideIn(host, dirname(to), job.job_id);
    job.progress({ stage: 'copy', done: 0, total: null, unit: 'bytes' });
    try {
      await host.step('export.copy', () =>
        copyOut(host, image, half, job.signal).catch(error => {
          throw diskFull(error, dirname(to)); // which need not be that of the data directory
        }),
      );
      job.signal.throwIfAborted();
      await host.step('export.link', () => linkTo(half, to));
    } catch (cause) {
      if (cause instanceof Error && 'code' in cause && cause.code === 'EEXIST')
        throw cannotExport(image, 'exists', `${plain(to)} exists already`, cause);
      throw cause;
    } finally {
      await rm(half, { force: true });
    }
    return image.id;
  });
