import { listAssets, listAvailable, removeAsset, setDefaultAsset, verifyAsset } from './asset.ts';
import { startDownload } from './fetch.ts';
import { needAsset } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { removeInitrds } from './initrd.ts';

export const kernelHandlers = (host: Host): HandlersOf<'kernel'> => ({
  'kernel.download': (_ctx, input) => startDownload(host, 'kernel', input),
  'kernel.list': (_ctx, input) => listAssets(host, 'kernel', input),
  'kernel.available': async (_ctx, input) =>
    (await listAvailable(host, 'kernel', input)).map(({ distro: _distro, ...one }) => one),
  'kernel.inspect': (_ctx, { kernel }) => needAsset(host, 'kernel', kernel),
  'kernel.verify': (_ctx, { kernel }) => verifyAsset(host, 'kernel', kernel),
  'kernel.set_default': (_ctx, { kernel, off }) => setDefaultAsset(host, 'kernel', kernel, !off),
  'kernel.remove': (_ctx, { kernel }) =>
    removeAsset(host, 'kernel', kernel, ({ id }) => host.step('kernel.initrds', () => removeInitrds(host, id))),
});
