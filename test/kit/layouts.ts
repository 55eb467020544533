/** The layouts of the places from which assets come, on a `Mirror`: releases of GitHub, of Anvil and Firecracker there, Alpine's tree. */
import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { gzipSync } from 'node:zlib';
import { through } from '../../src/lib/proc.ts';
import type { Content, Mirror } from './mirror.ts';
import type { Signer } from './signer.ts';
import { archive } from './tar.ts';

const sha = (kind: string, data: Buffer | string): string => createHash(kind).update(data).digest('hex');
export const sha256 = (data: Buffer | string): string => sha('sha256', data);
export const xz = async (data: Buffer): Promise<Buffer> =>
  buffer(Readable.from(through(['xz', '-c', '-1'], Readable.from([data], { objectMode: false }))));

export interface Release {
  tag: string;
  assets: Record<string, Buffer | string>;
  draft?: boolean;
  prerelease?: boolean;
}

export interface GitHub {
  /** Newest first. */
  releases: Release[];
  /** Releases a page at most, whatever is asked for. */
  page: number;
  /** Requests without this token get the rate limit's answer; undefined: nobody does. */
  token: string | undefined;
  /** When the limit ends, seconds since the epoch. */
  reset_s: number;
}

const describe = (mirror: Mirror, repo: string, { tag, assets, draft, prerelease }: Release, at: number) => ({
  id: 1000 + at,
  tag_name: tag,
  name: tag,
  draft: draft ?? false,
  prerelease: prerelease ?? false,
  published_at: draft ? null : new Date(1_760_000_000_000 - at * 86_400_000).toISOString(),
  html_url: `${mirror.origin}/${repo}/releases/tag/${tag}`,
  assets: Object.entries(assets).map(([name, data], n) => ({
    id: at * 100 + n,
    name,
    state: 'uploaded',
    size: Buffer.byteLength(data),
    content_type: 'application/octet-stream',
    browser_download_url: `${mirror.origin}/${repo}/releases/download/${tag}/${name}`,
  })),
});

/** GitHub: the API below `/api`, downloads as on github.com, which lead to a storage host. */
export const github = (mirror: Mirror, repo: string, releases: Release[]): GitHub => {
  const hub: GitHub = { releases, page: 100, token: undefined, reset_s: 0 };
  for (const { tag, assets } of releases)
    for (const [name, data] of Object.entries(assets)) mirror.store(`/${repo}/releases/download/${tag}/${name}`, data);
  const base = `/api/repos/${repo}/releases`;
  mirror.handlers.push((request, url) => {
    if (url.pathname !== base && !url.pathname.startsWith(`${base}/`)) return undefined;
    if (hub.token !== undefined && request.headers.authorization !== `Bearer ${hub.token}`)
      return {
        status: 403,
        headers: { 'x-ratelimit-limit': '60', 'x-ratelimit-remaining': '0', 'x-ratelimit-reset': String(hub.reset_s) },
        body: JSON.stringify({ message: 'API rate limit exceeded for 127.0.0.1.' }),
      };
    const all = hub.releases.map((release, at) => describe(mirror, repo, release, at));
    if (url.pathname !== base) {
      const [, kind, tag] = url.pathname.slice(base.length).split('/');
      const one = kind === 'latest' ? all.find(r => !r.draft && !r.prerelease) : all.find(r => r.tag_name === tag);
      return one === undefined ? { status: 404, body: '{"message":"Not Found"}' } : { body: JSON.stringify(one) };
    }
    const size = Math.min(hub.page, Number(url.searchParams.get('per_page') ?? 30));
    const page = Number(url.searchParams.get('page') ?? 1);
    const link = (n: number, rel: string) => `<${mirror.origin}${base}?per_page=${size}&page=${n}>; rel="${rel}"`;
    const last = Math.ceil(all.length / size);
    const links = page < last ? [link(page + 1, 'next'), link(last, 'last')] : [link(1, 'first')];
    return {
      headers: { link: links.join(', ') },
      body: JSON.stringify(all.slice((page - 1) * size, page * size)),
    };
  });
  return hub;
};

/** A release of Anvil: kernels, their sums in both forms, the signature, the key that nobody shall believe. */
export const anvilRelease = async (
  signer: Signer,
  version: string,
  kernels: { x86_64?: Buffer; aarch64?: Buffer },
): Promise<Release> => {
  const assets: Record<string, Buffer | string> = {};
  const sums: string[] = [];
  for (const [arch, data] of Object.entries(kernels)) {
    const name = arch === 'x86_64' ? `vmlinux-${version}-x86_64` : `Image-${version}-aarch64`;
    const packed = await xz(data);
    assets[`${name}.xz`] = packed;
    assets[`config-${version}-${arch}`] = 'CONFIG_64BIT=y\n';
    sums.push(`${sha256(data)}  ${name}`, `${sha256(packed)}  ${name}.xz`);
  }
  const list = `${sums.sort((a, b) => (a.slice(66) < b.slice(66) ? -1 : 1)).join('\n')}\n`;
  return {
    tag: `v${version}`,
    assets: {
      ...assets,
      SHA256SUMS: list,
      'SHA256SUMS.asc': await signer.detached(list),
      'signing-key.asc': signer.armored,
    },
  };
};

/** A release of Firecracker: the archive with programs, their debug files and papers, and its sum. */
export const firecrackerRelease = (
  version: string,
  arch: string,
  programs: { firecracker: Buffer; jailer: Buffer },
): Release => {
  const folder = `release-v${version}-${arch}`;
  const program = (name: string, data: Buffer) => ({
    name: `${folder}/${name}-v${version}-${arch}`,
    mode: 0o755,
    data,
  });
  const tgz = gzipSync(
    archive(
      { name: `${folder}/`, type: '5', mode: 0o755 },
      { name: `${folder}/LICENSE`, data: 'Apache License' },
      { ...program('firecracker', Buffer.from('debug')), name: `${folder}/firecracker-v${version}-${arch}.debug` },
      program('jailer', programs.jailer),
      program('firecracker', programs.firecracker),
      { name: `${folder}/SHA256SUMS`, data: `${sha256(programs.firecracker)}  firecracker-v${version}-${arch}\n` },
    ),
  );
  const name = `firecracker-v${version}-${arch}.tgz`;
  return { tag: `v${version}`, assets: { [name]: tgz, [`${name}.sha256.txt`]: `${sha256(tgz)}  ${name}\n` } };
};

const ALPINE_ENTRY = (branch: string, arch: string, version: string, data: Buffer, flavor: string) => {
  const file = `${flavor}-${version}-${arch}.tar.gz`;
  return `-
  title: "Mini root filesystem"
  desc: |
    Minimal root filesystem.
    For use in containers
    and minimal chroots.
  branch: v${branch}
  arch: ${arch}
  version: ${version}
  flavor: ${flavor}
  file: ${file}
  iso: ${file}
  date: 2025-02-13
  time: 23:21:48
  size: ${data.length}
  sha256: ${sha256(data)}
  sha512: ${sha('sha512', data)}
`;
};

/** Alpine's tree below `/alpine`: versions oldest first, each with its minirootfs as .tar.gz. The last one is latest-stable. */
export const alpine = (mirror: Mirror, arch: string, versions: readonly [version: string, tarGz: Buffer][]): void => {
  const put = (path: string, content: Content) => mirror.put(`/alpine/${path}`, content);
  for (const [version, data] of versions) {
    const branch = version.split('.').slice(0, 2).join('.');
    for (const folder of [`v${branch}`, 'latest-stable']) {
      const at = `${folder}/releases/${arch}`;
      const file = `alpine-minirootfs-${version}-${arch}.tar.gz`;
      put(`${at}/${file}`, data);
      put(`${at}/${file}.sha256`, `${sha256(data)}  ${file}\n`);
      put(`${at}/${file}.sha512`, `${sha('sha512', data)}  ${file}\n`);
      const others = ALPINE_ENTRY(branch, arch, version, Buffer.from('netboot'), 'alpine-netboot');
      put(
        `${at}/latest-releases.yaml`,
        `---\n${others}${ALPINE_ENTRY(branch, arch, version, data, 'alpine-minirootfs')}`,
      );
    }
  }
};
