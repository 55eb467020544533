/** What an image comes from: its build, the template, the image below, the archive. */
import type { Image, ImageInspect } from '../api/image.ts';
import type { Host } from './host.ts';

export const inspectImage = async (host: Host, image: Image): Promise<ImageInspect> => {
  const { store } = host;
  const [build, rootfs, usage] = await Promise.all([
    image.build_id === null ? undefined : store.findBuild(image.build_id),
    image.rootfs_id === null ? undefined : store.assets.rootfs.find(image.rootfs_id),
    host.disks.usage('images', image.id).catch(() => undefined),
  ]);
  const base_id = build?.base_image_id ?? null;
  const [template, base] = await Promise.all([
    build?.template_id == null ? undefined : store.findTemplate(build.template_id),
    base_id === null ? undefined : store.findImage(base_id),
  ]);
  return {
    ...image,
    used_bytes: usage?.allocated_bytes ?? null,
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
