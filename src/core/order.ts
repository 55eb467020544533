/** What a request to fetch an asset means: which provider, or which URL or file, before anything is asked of anybody. */
import type { AssetKind } from '../api/asset.ts';
import { bareVersion } from '../api/asset.ts';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { Provider } from '../api/provider.ts';
import { type From, plainPipeline, readFrom, versionIn } from '../assets/from.ts';
import { recognise } from '../assets/provider.ts';
import { hostArch } from '../lib/arch.ts';
import { needProvider } from './find.ts';
import type { Host } from './host.ts';

export interface Wish {
  version?: string | undefined;
  provider?: string | undefined;
  arch?: Arch | undefined;
  from?: string | undefined;
  sha256?: string | undefined;
  distro?: string | undefined;
  packages?: readonly string[];
  /** What a file or URL is called of which nothing says it. */
  otherwise?: { distro: string; version: string };
}

export interface Order {
  readonly kind: AssetKind;
  /** By ID; null: the URL or file of `from` alone. */
  readonly provider: string | null;
  readonly version: string | null;
  readonly distro: string | null;
  readonly arch: Arch;
  readonly packages: readonly string[];
  readonly from: From | null;
  /** Of the bytes that come, before they are unpacked. */
  readonly sha256: string | null;
  /** For the reader. */
  readonly subject: string;
}

const invalid = (why: string, hint?: string): Fault => new Fault('invalid', why, { hint });

/** The provider that was named, which must be of that kind, or the default one. */
export const chooseProvider = async (
  host: Host,
  kind: AssetKind,
  { provider: ref, distro }: { provider?: string | undefined; distro?: string | undefined },
): Promise<Provider> => {
  if (ref !== undefined) {
    const provider = await needProvider(host, ref);
    if (provider.kind !== kind) throw invalid(`Cannot take a ${kind} from provider '${provider.name}': it has none.`);
    if (distro !== undefined && provider.config.distro !== undefined && provider.config.distro !== distro)
      throw invalid(`Cannot take '${distro}' from provider '${provider.name}': it has ${provider.config.distro}.`);
    return provider;
  }
  const all = await host.store.listProviders(kind); // the default first
  const found = distro === undefined ? all[0] : all.find(p => p.config.distro === distro);
  if (found !== undefined) return found;
  const what = distro === undefined ? kind : `${kind} '${distro}'`;
  throw new Fault('not_found', `There is no provider of a ${what}.`, { hint: `nexusctl provider list --kind ${kind}` });
};

const wordsOf = (text: (string | null | undefined)[]): string => text.filter(one => one != null).join(' ');

/** A URL under a provider's tree is verified as that provider does; any other, and a file, by the hash that was given. */
const orderFrom = async (host: Host, kind: AssetKind, wish: Wish, from: From): Promise<Order> => {
  if (wish.provider !== undefined) throw invalid('Name either a provider or a URL or file, not both.');
  const { distro = wish.otherwise?.distro ?? null, packages = [], sha256 = null } = wish;
  if (packages.length > 0) throw invalid('Packages can only be added to a root file system that is made here.');
  const asked = wish.version === undefined ? undefined : bareVersion(wish.version);
  const base = { kind, from, packages, sha256 };
  for (const provider of from.is_url ? await host.store.listProviders(kind) : []) {
    const found = recognise(provider, from.place);
    if (found === undefined || (provider.unverified && sha256 === null)) continue;
    const { version, arch } = found;
    if ((asked ?? version) !== version || (wish.arch ?? arch) !== arch)
      throw invalid(`Cannot take ${from.name} as another version or for another processor: it is ${version}, ${arch}.`);
    const subject = `${provider.name}:${version}`;
    return { ...base, provider: provider.id, version, arch, distro: provider.config.distro ?? distro, subject };
  }
  if (from.is_url && sha256 === null)
    throw invalid(
      `Cannot take ${from.name} from there: no provider knows that URL, so nothing proves what comes from it.`,
      'Give the SHA-256 that its maker publishes: --sha256 …',
    );
  const version = asked ?? versionIn(from.name) ?? wish.otherwise?.version;
  if (version === undefined) throw invalid(`Name a version: there is none in '${from.name}'.`, '--version …');
  if (kind === 'rootfs' && distro === null)
    throw invalid('Name the distribution that this root file system is of.', '--distro …');
  const arch = wish.arch ?? hostArch() ?? 'x86_64';
  plainPipeline(kind, from, sha256 ?? undefined); // refused now, not later
  return { ...base, provider: null, version, arch, distro, subject: wordsOf([from.name, distro, version]) };
};

/** Reads a wish. Faults: `invalid`, and `not_found` for a provider that is not there. */
export const orderOf = async (host: Host, kind: AssetKind, wish: Wish): Promise<Order> => {
  if (wish.from !== undefined) return orderFrom(host, kind, wish, readFrom(wish.from));
  if (wish.sha256 !== undefined) throw invalid('A hash goes with a URL or a file: --from …');
  const provider = await chooseProvider(host, kind, wish);
  const { packages = [] } = wish;
  const distro = provider.config.distro ?? wish.distro ?? null;
  if (kind === 'rootfs' && distro === null)
    throw invalid(`Name the distribution: provider '${provider.name}' is for any.`, '--distro …');
  if (packages.length > 0 && provider.type !== 'debian')
    throw invalid(`Cannot add packages to what provider '${provider.name}' has: it comes as it is.`);
  const own = hostArch() ?? 'x86_64';
  const { arch = own } = wish;
  if (provider.type === 'debian' && arch !== own)
    throw new Fault('unsupported', `Cannot take packages for ${arch} from provider '${provider.name}' on this host.`);
  const version = wish.version === undefined ? null : bareVersion(wish.version);
  const subject = wordsOf([
    `${kind === 'rootfs' ? distro : provider.name}:${version ?? 'newest'}`,
    arch === own ? null : arch,
    ...packages,
  ]);
  return { kind, provider: provider.id, version, distro, arch, packages, from: null, sha256: null, subject };
};
