import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { OpIn } from '../api/ops.ts';
import type { Rootfs } from '../api/rootfs.ts';
import { buildExt4 } from '../images/build.ts';
import { guestOverlays } from '../images/overlays.ts';
import { usualAsset } from './asset.ts';
import { needImage, needRootfs } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import type { JobContext } from './jobs.ts';
import { inTemp } from './land.ts';
import { assetDir } from './paths.ts';
import { workEnv } from './stray.ts';
import { takeAsset, useAsset } from './using.ts';

export const imageHandlers = (host: Host): HandlersOf<'image'> => ({
  'image.build': async (_ctx, input) => {
    const rootfs = input.rootfs === undefined ? await usualRootfs(host) : await needRootfs(host, input.rootfs);
    await nameIsFree(host, input.name);
    return host.jobs.start({ kind: 'image.build', subject: input.name, input }, job => build(host, job, input, rootfs));
  },
  'image.list': () => host.store.listImages(),
  'image.get': (_ctx, { image }) => needImage(host, image),
  'image.remove': async (_ctx, { image }) => {
    const { id, name } = await needImage(host, image);
    using _taken = takeAsset(host, { id }, `image '${name}'`);
    await host.step('image.record', () => host.store.removeImage(id));
    await host.step('image.disk', () => host.disks.removeImage(id));
    return {};
  },
});

const usualRootfs = async (host: Host): Promise<Rootfs> => {
  const rootfs = await usualAsset(host, 'rootfs');
  if (rootfs !== undefined) return rootfs;
  throw new Fault('not_found', 'There is no root file system.', { hint: 'nexusctl rootfs download debian 12' });
};

const nameIsFree = async (host: Host, name: string): Promise<void> => {
  if ((await host.store.findImage(name)) === undefined) return;
  throw new Fault('exists', `Image '${name}' exists already.`, { hint: `nexusctl image get ${name}` });
};

const build = (host: Host, job: JobContext, input: OpIn<'image.build'>, rootfs: Rootfs): Promise<string> =>
  inTemp(host, job.job_id, async temp => {
    using _used = await useAsset(host, rootfs, needRootfs);
    const id = newId('img');
    const { name } = input;
    const agent = await readFile(host.agent.path);
    const label = {
      ...{ template: null, template_version: null, rootfs: `${rootfs.distro}:${rootfs.version}` },
      ...{ rootfs_sha256: rootfs.sha256, agent_version: host.agent.version },
    };
    let init: Image['init'] = 'agent';
    const out = join(temp, 'disk.raw');
    const made = await host.step('build.programs', () =>
      buildExt4({
        archive: join(assetDir(host.paths, 'rootfs', rootfs.id), 'rootfs.tar'),
        archive_sha256: rootfs.sha256,
        defaults: (scan, facts) => {
          init = input.init === 'auto' ? facts.init : input.init;
          return guestOverlays(scan, facts, { name, init, agent, label });
        },
        out,
        tools: { env: workEnv(host.paths) },
        ...(input.size_bytes === undefined ? {} : { size_bytes: input.size_bytes }),
        signal: job.signal,
        onProgress: job.progress,
        onLog: job.log,
      }),
    );
    const { os, arch } = made.facts;
    if (arch !== undefined && arch !== rootfs.arch) {
      throw new Fault('unsupported', `Cannot build image '${name}': its programs are for ${arch}, not ${rootfs.arch}.`);
    }
    await host.step('build.import', () => host.disks.importImage(out, id, job.signal, { move: true }));
    try {
      await host.step('build.insert', () =>
        host.store.insertImage({
          id,
          name,
          arch: rootfs.arch,
          init,
          os,
          rootfs_id: rootfs.id,
          agent_version: host.agent.version,
          sha256: made.sha256,
          size_bytes: made.size_bytes,
          created_at_ms: Date.now(),
        }),
      );
    } catch (error) {
      await host.disks.removeImage(id);
      throw error;
    }
    return id;
  });
