/** What an image comes from: its build, the template, the image below, the archive. */
import type { Image, ImageInspect, ImageListed } from '../api/image.ts';
import type { Host } from './host.ts';
import { imageSpace } from './image_remove.ts';

export const listImages = async (host: Host): Promise<ImageListed[]> => {
  const images = await host.store.listImages();
  const space = await imageSpace(host, images);
  return images.map((image, i) => ({
    ...image,
    ...(space[i] ?? { used_bytes: null, own_bytes: null, shared_bytes: null }),
  }));
};

export const inspectImage = async (host: Host, image: Image): Promise<ImageInspect> => {
  const { store } = host;
  const [build, rootfs, [listed]] = await Promise.all([
    image.build_id === null ? undefined : store.findBuild(image.build_id),
    image.rootfs_id === null ? undefined : store.assets.rootfs.find(image.rootfs_id),
    imageSpace(host, [image]),
  ]);
  const base_id = build?.base_image_id ?? null;
  const [template, base] = await Promise.all([
    build?.template_id == null ? undefined : store.findTemplate(build.template_id),
    base_id === null ? undefined : store.findImage(base_id),
  ]);
  return {
    ...image,
    ...(listed ?? { used_bytes: null, own_bytes: null, shared_bytes: null }),
    build: build === undefined ? null : buildOf(build),
    template:
      build?.template_id == null || build.template === null
        ? null
        : { id: build.template_id, name: template?.name ?? build.template, version: template?.version ?? null },
    base: base === undefined ? null : { id: base.id, name: base.name },
    rootfs: rootfs === undefined ? null : rootfsOf(rootfs),
  };
};

const buildOf = ({
  id,
  template_version,
  source_type,
  source,
  inputs_sha256,
  created_at_ms,
  ended_at_ms,
}: NonNullable<ImageInspect['build']>): ImageInspect['build'] => ({
  ...{ id, template_version, source_type, source, inputs_sha256, created_at_ms, ended_at_ms },
});

const rootfsOf = ({
  id,
  distro,
  version,
  provider,
  source,
  proofs,
}: NonNullable<ImageInspect['rootfs']>): ImageInspect['rootfs'] => ({ id, distro, version, provider, source, proofs });
