/** Which versions a provider has, and which of them a wish means. */
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { Provider } from '../api/provider.ts';
import { plain } from '../lib/text.ts';
import { newestOf, newestOfAll } from './alpine.ts';
import { openApt } from './apt.ts';
import { debianKernels, findDebianKernel } from './debian-kernel.ts';
import { debianReleases, debianVersion } from './debian-rootfs.ts';
import { releasesOf } from './github.ts';
import type { HttpOptions } from './http.ts';
import { fileOf } from './provider.ts';
import { matches, newestFirst } from './versions.ts';

export interface Look extends HttpOptions {
  /** Private, for the lists of packages. */
  dir: string;
  onLog: (line: string) => void;
}

const setting = ({ name, config }: Provider, key: string): string => {
  const value = config[key];
  if (value !== undefined) return value;
  throw new Fault('invalid', `Cannot ask provider '${name}': its config has no '${key}'.`, {
    hint: `nexusctl provider update ${name} --config ${key}=…`,
  });
};

const alpineMirror = (provider: Provider) => ({ base: setting(provider, 'base'), flavor: setting(provider, 'flavor') });

/** Releases that have the file for that processor. Tags of other things than versions (`cli-v1.0`) are not looked at. */
const releaseVersions = async (provider: Provider, arch: Arch, look: Look): Promise<string[]> => {
  const repository = { api: setting(provider, 'api'), repo: setting(provider, 'repo') };
  const releases = await releasesOf(repository, look);
  return releases.flatMap(({ tag_name, assets }) => {
    const version = /^v(\d[0-9A-Za-z.+~_-]{0,127})$/.exec(tag_name)?.[1];
    if (version === undefined) return [];
    const file = fileOf(provider, { version, arch });
    return file === undefined || assets.some(asset => asset.name === file) ? [version] : [];
  });
};

/** The versions that a provider has for a processor, newest first. */
export const versionsOf = async (provider: Provider, arch: Arch, look: Look): Promise<string[]> => {
  switch (provider.type) {
    case 'anvil':
    case 'github':
      return newestFirst(await releaseVersions(provider, arch, look));
    case 'alpine':
      return newestFirst(await newestOfAll(alpineMirror(provider), arch, look));
    case 'debian':
      if (provider.kind === 'rootfs') return newestFirst(debianReleases());
      return debianKernels(await openApt(look.dir, look.signal, look.onLog));
    case 'url':
      throw new Fault('unsupported', `Cannot list the versions of provider '${provider.name}': it is a URL alone.`);
  }
};

/** Three numbers, or more than numbers, name one version; less is a series. */
const isExact = (version: string): boolean => /^\d+\.\d+\.\d+/.test(version) || /[^\d.]/.test(version);

const none = (provider: Provider, wish: string | undefined, known: readonly string[]): Fault => {
  const what = wish === undefined ? 'any version' : `'${plain(wish)}'`;
  const some = known.slice(0, 6).join(', ');
  return new Fault('not_found', `Cannot find ${what} at provider '${provider.name}'.`, {
    hint: some === '' ? `nexusctl provider inspect ${provider.name}` : `It has: ${some}.`,
  });
};

/** The version that is meant by a wish: that very one, the newest of a series, or the newest of all. */
export const resolveVersion = async (
  provider: Provider,
  wish: string | undefined,
  arch: Arch,
  look: Look,
): Promise<string> => {
  if (provider.type === 'debian')
    return provider.kind === 'rootfs'
      ? debianVersion(wish)
      : findDebianKernel(await openApt(look.dir, look.signal, look.onLog), wish);
  if (provider.type === 'url') {
    if (wish === undefined) throw new Fault('invalid', `Name a version: provider '${provider.name}' is a URL alone.`);
    return wish;
  }
  // what is not there is told by the download
  if (wish !== undefined && isExact(wish)) return wish;
  if (provider.type === 'alpine' && wish !== undefined) {
    const newest = await newestOf(alpineMirror(provider), `v${wish}`, arch, look);
    if (newest !== undefined) return newest;
  }
  const known = await versionsOf(provider, arch, look);
  const found = known.find(version => matches(version, wish));
  if (found === undefined) throw none(provider, wish, known);
  return found;
};
