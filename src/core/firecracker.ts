/** Firecrackers of the store. The default one, or the newest, starts VMs, unless the daemon was told of a program. */
import { basename, dirname, join } from 'node:path';
import type { Firecracker } from '../api/firecracker.ts';
import type { StateStore } from '../store/store.ts';
import { listAssets, listAvailable, removeAsset, setDefaultAsset, usualAsset, verifyAsset } from './asset.ts';
import { startDownload } from './fetch.ts';
import { needAsset } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { assetDir, type Paths } from './paths.ts';
import { SORTS } from './sort.ts';

/** The program that starts VMs, if the store has one for this processor. */
export const storedFirecracker = async (store: StateStore, paths: Paths): Promise<string | undefined> => {
  const found = await usualAsset({ store }, 'firecracker');
  return found && join(assetDir(paths, 'firecracker', found.id), SORTS.firecracker.file);
};

/** The Firecracker of the store that a program is. */
export const firecrackerOf = async (host: Host, program: string): Promise<Firecracker | undefined> =>
  dirname(dirname(program)) === host.paths.firecrackers
    ? host.store.assets.firecracker.find(basename(dirname(program)))
    : undefined;

/** The driver looks again which program it is to start. VMs that run stay as they are. */
export const lookAgain = async (host: Host): Promise<void> => {
  await host.vmms.of('firecracker').refresh();
};

export const firecrackerHandlers = (host: Host): HandlersOf<'firecracker'> => ({
  'firecracker.download': (_ctx, input) => startDownload(host, 'firecracker', input, () => lookAgain(host)),
  'firecracker.list': (_ctx, input) => listAssets(host, 'firecracker', input),
  'firecracker.available': async (_ctx, input) =>
    (await listAvailable(host, 'firecracker', input)).map(({ distro: _distro, ...one }) => one),
  'firecracker.inspect': (_ctx, { firecracker }) => needAsset(host, 'firecracker', firecracker),
  'firecracker.verify': (_ctx, { firecracker }) => verifyAsset(host, 'firecracker', firecracker),
  'firecracker.set_default': async (_ctx, { firecracker, off }) => {
    const chosen = await setDefaultAsset(host, 'firecracker', firecracker, !off);
    await lookAgain(host);
    return chosen;
  },
  'firecracker.remove': (_ctx, { firecracker }) => removeAsset(host, 'firecracker', firecracker, () => lookAgain(host)),
});
