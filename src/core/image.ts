import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import type { OpIn } from '../api/ops.ts';
import type { Rootfs } from '../api/rootfs.ts';
import { usualAsset } from './asset.ts';
import { startBuild } from './building.ts';
import { ensureImage } from './ensure.ts';
import { needImage, needRootfs } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { inspectImage, listImages } from './image_chain.ts';
import { exportImage, importImage } from './image_files.ts';
import { removeImage } from './image_remove.ts';

export const imageHandlers = (host: Host): HandlersOf<'image'> => ({
  'image.build': (_ctx, input) => buildPlain(host, input),
  'image.ensure': (ctx, { image }) => ensureImage(host, image, ctx.actor),
  'image.list': () => listImages(host),
  'image.inspect': async (_ctx, { image }) => inspectImage(host, await needImage(host, image)),
  'image.import': async (_ctx, input) => {
    await nameIsFree(host, input.name);
    return importImage(host, input);
  },
  'image.export': async (_ctx, { image, to }) => exportImage(host, await needImage(host, image), to),
  'image.remove': async (_ctx, { image }) => {
    await removeImage(host, await needImage(host, image));
    return {};
  },
});

const usualRootfs = async (host: Host): Promise<Rootfs> => {
  const rootfs = await usualAsset(host, 'rootfs');
  if (rootfs !== undefined) return rootfs;
  throw new Fault('not_found', 'There is no root file system.', { hint: 'nexusctl rootfs download debian 12' });
};

const nameIsFree = async (host: Host, name: string): Promise<void> => {
  const image = await host.store.findImage(name);
  if (image?.name === name)
    throw new Fault('exists', `Image '${name}' exists already.`, { hint: `nexusctl image inspect ${name}` });
  if ((await host.store.findTemplate(name)) === undefined) return;
  throw new Fault('exists', `Cannot make image '${name}': a template has that name.`, {
    hint: `nexusctl build trigger ${name}`,
  });
};

/** A build of an archive on disk and nothing else. */
const buildPlain = async (host: Host, input: OpIn<'image.build'>): Promise<Job> => {
  const { name, init, size_bytes = null } = input;
  const rootfs = input.rootfs === undefined ? await usualRootfs(host) : await needRootfs(host, input.rootfs);
  await nameIsFree(host, name);
  const { job } = await startBuild(host, 'image.build', {
    ...{ id: newId('bld'), image_name: name, template_id: null, template: null, template_version: null },
    ...{ source_type: 'rootfs', source: `${rootfs.distro}:${rootfs.version}`, sha256: null, rootfs_id: rootfs.id },
    ...{ base_image_id: null, overlays: [], environment: {}, init, size_bytes },
  });
  return job;
};
