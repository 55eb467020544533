/** The verbs that kernels, root file systems and Firecrackers have in common. */
import type { AssetKind, Available } from '../api/asset.ts';
import { Fault } from '../api/fault.ts';
import { versionsOf } from '../assets/discover.ts';
import { hostArch } from '../lib/arch.ts';
import { removeTree } from '../lib/files.ts';
import type { AssetOf } from '../store/store.ts';
import { needAsset, needProvider } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { inTemp } from './land.ts';
import { chooseProvider, type Wish } from './order.ts';
import { assetDir } from './paths.ts';
import { SORTS, type Sort, verifyFiles } from './sort.ts';
import { tokenFor } from './token.ts';
import { takeAsset, useAsset } from './using.ts';

/** How long a source may take to say what it has. */
const LIST_MS = 60_000;

type Choice = Pick<Wish, 'provider' | 'arch' | 'distro'>;

/** Those on disk, newest first. */
export const listAssets = async <K extends AssetKind>(host: Host, kind: K, choice: Choice): Promise<AssetOf[K][]> => {
  const { arch, distro } = choice;
  const provider = choice.provider === undefined ? undefined : (await needProvider(host, choice.provider)).name;
  return (await host.store.assets[kind].list()).filter(
    a =>
      (provider === undefined || a.provider === provider) &&
      (arch === undefined || a.arch === arch) &&
      (distro === undefined || !('distro' in a) || a.distro === distro),
  );
};

/** Those at the source, newest first. */
export const listAvailable = async (
  host: Host,
  kind: AssetKind,
  choice: Choice,
): Promise<(Available & { distro: string })[]> => {
  const provider = await chooseProvider(host, kind, choice);
  const { arch = hostArch() ?? 'x86_64' } = choice;
  const distro = provider.config.distro ?? choice.distro ?? '';
  const token = await tokenFor(host, provider);
  const signal = AbortSignal.any([AbortSignal.timeout(LIST_MS), host.closing]);
  const versions = await inTemp(host, newId('look'), dir =>
    versionsOf(provider, arch, { dir, signal, token, onLog: line => host.log.debug({ line }, 'versions') }),
  ).catch((error: unknown) => {
    if (!signal.aborted || host.closing.aborted) throw error;
    throw new Fault('timeout', `Provider '${provider.name}' did not say within ${LIST_MS / 1000} s what it has.`);
  });
  const here = await listAssets(host, kind, { arch, distro: kind === 'rootfs' ? distro : undefined });
  return versions.map(version => ({
    ...{ distro, version, arch, provider: provider.name },
    on_disk: here.some(asset => asset.version === version),
  }));
};

export const verifyAsset = async <K extends AssetKind>(host: Host, kind: K, ref: string): Promise<AssetOf[K]> => {
  const asset = await needAsset(host, kind, ref);
  using _used = await useAsset(host, asset, (_host, id) => needAsset(host, kind, id));
  await verifyFiles(kind, assetDir(host.paths, kind, asset.id), asset, host.closing);
  return asset;
};

/** What another processor runs cannot be what is taken where nothing is named. */
export const setDefaultAsset = async <K extends AssetKind>(
  host: Host,
  kind: K,
  ref: string,
  on: boolean,
): Promise<AssetOf[K]> => {
  const asset = await needAsset(host, kind, ref);
  const sort: Sort<K> = SORTS[kind];
  if (on && asset.arch !== hostArch())
    throw new Fault('unsupported', `Cannot make ${sort.name(asset)} the default: it is for ${asset.arch}.`);
  return host.step('asset.default', () => host.store.assets[kind].setDefault(asset.id, on));
};

/** Takes the record, then what belongs to it, then the files. */
export const removeAsset = async <K extends AssetKind>(
  host: Host,
  kind: K,
  ref: string,
  between: (asset: AssetOf[K]) => Promise<void> = async () => {},
): Promise<Record<string, never>> => {
  const asset = await needAsset(host, kind, ref);
  const sort: Sort<K> = SORTS[kind];
  using _taken = takeAsset(host, asset, sort.name(asset));
  await host.step('asset.record', () => host.store.assets[kind].remove(asset.id));
  await between(asset);
  await host.step('asset.files', () => removeTree(host.paths.data, assetDir(host.paths, kind, asset.id)));
  return {};
};

/** The one that is taken where none is named: the default, or the newest for this processor. */
export const usualAsset = async <K extends AssetKind>(
  { store }: Pick<Host, 'store'>,
  kind: K,
): Promise<AssetOf[K] | undefined> => {
  const own = (await store.assets[kind].list()).filter(asset => asset.arch === hostArch());
  return own.find(asset => asset.is_default) ?? own[0];
};
