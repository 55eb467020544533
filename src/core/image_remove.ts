/** The end of an image, and what its disk takes. */
import type { Space } from '../api/common.ts';
import type { Image } from '../api/image.ts';
import { removeDisk } from './disk_notes.ts';
import type { Host } from './host.ts';
import { takeAsset } from './using.ts';

/** `outdated`: only if its template has a newer one when it goes. */
export const removeImage = async (
  host: Host,
  { id, name }: Pick<Image, 'id' | 'name'>,
  only: { outdated?: boolean } = {},
): Promise<void> => {
  using _taken = takeAsset(host, { id }, `image '${name}'`);
  await host.step('image.record', () => host.store.removeImage(id, only));
  await host.step('image.disk', () => removeDisk(host, id));
};

export const imageSpace = (host: Host, images: readonly Pick<Image, 'id'>[]): Promise<Space[]> =>
  host.disks.space(images.map(({ id }) => ({ kind: 'images', id })));
