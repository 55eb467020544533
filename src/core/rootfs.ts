import { listAssets, listAvailable, removeAsset, setDefaultAsset, verifyAsset } from './asset.ts';
import { startDownload } from './fetch.ts';
import { needAsset } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';

/** alpine and 3.21, as they are typed, are one reference. */
const refOf = ({ rootfs, version }: { rootfs: string; version?: string | undefined }): string =>
  version === undefined ? rootfs : `${rootfs}:${version}`;

export const rootfsHandlers = (host: Host): HandlersOf<'rootfs'> => ({
  'rootfs.download': (_ctx, input) => startDownload(host, 'rootfs', input),
  'rootfs.list': (_ctx, input) => listAssets(host, 'rootfs', input),
  'rootfs.available': (_ctx, input) => listAvailable(host, 'rootfs', input),
  'rootfs.inspect': (_ctx, input) => needAsset(host, 'rootfs', refOf(input)),
  'rootfs.verify': (_ctx, input) => verifyAsset(host, 'rootfs', refOf(input)),
  'rootfs.set_default': (_ctx, { off, ...input }) => setDefaultAsset(host, 'rootfs', refOf(input), !off),
  'rootfs.remove': (_ctx, input) => removeAsset(host, 'rootfs', refOf(input)),
});
