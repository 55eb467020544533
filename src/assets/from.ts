/** The pipeline for a URL or a file that belongs to no provider: what its name tells, and the hash that was given with it. */
import { basename, isAbsolute } from 'node:path';
import type { AssetKind } from '../api/asset.ts';
import { Fault } from '../api/fault.ts';
import type { Pipeline, Stage } from '../api/pipeline.ts';
import { plain } from '../lib/text.ts';
import { httpsUrl } from './http.ts';

export interface From {
  /** Text of an https URL, or an absolute path. */
  place: string;
  is_url: boolean;
  /** Name of the file. */
  name: string;
}

/** Checks what a person named. */
export const readFrom = (from: string): From => {
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(from)) {
    const { href, pathname } = httpsUrl(from);
    return { place: href, is_url: true, name: basename(pathname) };
  }
  if (!isAbsolute(from))
    throw new Fault('invalid', `Cannot take '${plain(from)}': it is neither an https URL nor an absolute path.`);
  return { place: from, is_url: false, name: basename(from) };
};

const COMPRESSED: readonly (readonly [RegExp, Stage['stage'] & ('xz' | 'gzip' | 'zstd')])[] = [
  [/\.(xz|txz)$/, 'xz'],
  [/\.(gz|tgz)$/, 'gzip'],
  [/\.(zst|tzst)$/, 'zstd'],
];

/** Names as their makers give them: vmlinux-6.18.9-x86_64.xz, alpine-minirootfs-3.21.3-x86_64.tar.gz, firecracker-v1.12.0-x86_64.tgz. */
export const versionIn = (name: string): string | undefined =>
  /(?:^|[-_])v?(\d+\.\d+(?:\.\d+)*(?:[-+~](?!x86_64|aarch64|amd64|arm64)[0-9A-Za-z.+~]+)*)/
    .exec(name.replace(/(\.tar)?\.(xz|gz|zst|tgz|txz|tar)$/, ''))?.[1]
    ?.replace(/\.$/, '');

/** Source, the hash of what comes from it, decompression by the name, and what the kind takes out of it. */
export const plainPipeline = (kind: AssetKind, { place, is_url, name }: From, sha256: string | undefined): Pipeline => {
  // a template has braces, a URL or a path that somebody named has none of ours
  if (/[{}]/.test(place)) throw new Fault('invalid', `Cannot take '${plain(place)}': there is a brace in it.`);
  const stages: Stage[] = [is_url ? { stage: 'http', url: place } : { stage: 'file', path: place }];
  if (sha256 !== undefined) stages.push({ stage: 'sha256', expect: { hash: sha256 } });
  const compressed = COMPRESSED.find(([end]) => end.test(name))?.[1];
  if (compressed !== undefined) stages.push({ stage: compressed });
  if (kind === 'kernel' && /^(vmlinuz|bzImage)/i.test(name)) stages.push({ stage: 'bzimage' });
  if (kind === 'firecracker' && /\.(tgz|tar(\.\w+)?)$/.test(name))
    stages.push({
      stage: 'member',
      archive: 'tar',
      name: 'release-v{version}-{arch}/firecracker-v{version}-{arch}',
      beside: { jailer: 'release-v{version}-{arch}/jailer-v{version}-{arch}' },
    });
  return stages;
};
