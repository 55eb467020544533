/**
 * The story of a build: its record, its turn, its archive, its overlays, the file system, the image.
 *
 * INVARIANTS: a build whose record is there ends as `success`, `failed` or `canceled`, at the latest when the next daemon starts. The
 * image and the success of its build are written together; until then no record knows of the disk.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Build } from '../api/build.ts';
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { Job } from '../api/job.ts';
import type { Rootfs } from '../api/rootfs.ts';
import { type Built, buildExt4 } from '../images/build.ts';
import type { Overlay } from '../images/merge.ts';
import { guestOverlays } from '../images/overlays.ts';
import { AGENT_PATH } from '../images/services.ts';
import { makeDisk, removeDisk } from './disk_notes.ts';
import { needRootfs } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { NO_AGENT } from './image_files.ts';
import { insist } from './insist.ts';
import type { JobContext } from './jobs.ts';
import { inTemp } from './land.ts';
import type { Layers } from './layers.ts';
import { readOverlays } from './layers.ts';
import { assetDir } from './paths.ts';
import { obtain } from './source.ts';
import { workEnv } from './stray.ts';
import { useAsset } from './using.ts';

/** Builds without image that are kept. */
const KEEP = 200;

/** What is to be built. */
export type Plan = Layers &
  Pick<
    Build,
    'id' | 'image_name' | 'template_id' | 'template' | 'template_version' | 'source_type' | 'source' | 'sha256'
  >;

/** Records a build and starts its job, or joins the one that does the same. */
export const startBuild = async (
  host: Host,
  kind: 'build.trigger' | 'image.build',
  plan: Plan,
): Promise<{ build: Build; job: Job }> => {
  const build: Build = {
    ...{ ...plan, state: 'building', job_id: newId('job') },
    ...{ image_id: null, inputs_sha256: null, image_sha256: null, error: null },
    ...{ created_at_ms: Date.now(), ended_at_ms: null },
  };
  await host.step('build.record', () => host.store.insertBuild(build));
  try {
    const what = {
      kind,
      subject: build.image_name,
      input: { ...plan, id: null },
      id: build.job_id,
      queue: host.builds,
    };
    const job = await host.jobs.start({ ...what, ended: end => tellEnd(host, build.id, end) }, context =>
      runBuild(host, context, build),
    );
    if (job.id !== build.job_id) await host.store.removeBuild(build.id);
    return { build, job };
  } catch (error) {
    await host.store.removeBuild(build.id).catch(() => {}); // the next daemon calls it interrupted
    throw error;
  }
};

/** How the job ended is how the build did. */
const tellEnd = async (host: Host, id: string, { state, error }: Job): Promise<void> => {
  if (state !== 'succeeded') {
    const end = { state: state === 'canceled' ? state : ('failed' as const), error, ended_at_ms: Date.now() };
    await host
      .step('build.end', () => host.store.endBuild(id, end))
      .catch(() => void insist(host, 'the end of a build', () => host.store.endBuild(id, end)).catch(() => {}));
  }
  await host.store.pruneBuilds(KEEP);
};

const runBuild = (host: Host, job: JobContext, build: Build): Promise<string> =>
  inTemp(host, job.job_id, async temp => {
    const { id, rootfs_id, image_name: name } = build;
    const rootfs = await host.step('build.source', () =>
      rootfs_id === null ? obtain(host, job, build, temp) : needRootfs(host, rootfs_id),
    );
    using _used = await useAsset(host, rootfs, needRootfs);
    await host.disks.needRoom(`build image '${name}'`, rootfs.size_bytes);
    const { laid, kept } = await readOverlays(host, build, job.signal);
    await host.step('build.inputs', () => host.store.patchBuild(id, { rootfs_id: rootfs.id, overlays: kept }));
    const out = join(temp, 'disk.raw');
    using room = new DisposableStack();
    const needRoom = async (bytes: number) => {
      room.use(await host.disks.promiseRoom(`build image '${name}'`, bytes));
    };
    const { made, init, agent_version } = await host.step('build.programs', () =>
      make(host, job, build, rootfs, { overlays: laid, out, needRoom }),
    );
    const { os, arch } = made.facts;
    if (arch !== undefined && arch !== rootfs.arch)
      throw new Fault('unsupported', `Cannot build image '${name}': its programs are for ${arch}, not ${rootfs.arch}.`);
    const image: Image = {
      ...{ id: newId('img'), name, arch: rootfs.arch, init, os, build_id: id, rootfs_id: rootfs.id },
      ...{ agent_version, warning: agent_version === null ? NO_AGENT : null },
      ...{ sha256: made.sha256, size_bytes: made.size_bytes, created_at_ms: Date.now() },
    };
    using _making = host.uses.use(image.id);
    await host.step('build.import', () =>
      makeDisk(host, image.id, () => host.disks.importImage(out, image.id, job.signal, { move: true })),
    );
    try {
      await host.step('build.insert', () => host.store.finishBuild(id, image, made.inputs_sha256, Date.now()));
    } catch (error) {
      await removeDisk(host, image.id);
      throw error;
    }
    if (image.warning !== null) job.log(image.warning);
    job.log(`image '${name}' is ${image.id}`);
    return image.id;
  });

/** The file system, the init that it was made for, and the agent that is in it. */
const make = async (
  host: Host,
  { signal, progress, log }: JobContext,
  build: Build,
  rootfs: Rootfs,
  how: { overlays: Overlay[]; out: string; needRoom: (bytes: number) => Promise<void> },
): Promise<{ made: Built } & Pick<Image, 'init' | 'agent_version'>> => {
  const agent = await readFile(host.agent.path);
  const label = {
    ...{ template: build.template, template_version: build.template_version },
    ...{ rootfs: `${rootfs.distro}:${rootfs.version}`, rootfs_sha256: rootfs.sha256 },
  };
  let init: Image['init'] = 'agent';
  let agent_version: Image['agent_version'] = null;
  const made = await buildExt4({
    archive: join(assetDir(host.paths, 'rootfs', rootfs.id), 'rootfs.tar'),
    archive_sha256: rootfs.sha256,
    ...how,
    defaults: (scan, facts, isTheirs) => {
      agent_version = isTheirs(AGENT_PATH) ? null : host.agent.version;
      init = build.init === 'auto' ? facts.init : build.init;
      const { image_name: name, environment } = build;
      return guestOverlays(scan, facts, { name, init, agent, label: { ...label, agent_version }, environment });
    },
    tools: { env: workEnv(host.paths) },
    ...(build.size_bytes === null ? {} : { size_bytes: build.size_bytes }),
    signal,
    onProgress: progress,
    onLog: log,
  });
  return { made, init, agent_version };
};
