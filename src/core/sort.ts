/** What is different about kernels, root file systems and Firecrackers on disk, in one table. */
import { join } from 'node:path';
import type { AssetKind } from '../api/asset.ts';
import type { LandedFile } from '../api/pipeline.ts';
import { checkArchive, checkFirecracker, checkKernel, checkProgram } from '../assets/check.ts';
import { verifyFile } from '../assets/verify.ts';
import type { AssetOf } from '../store/store.ts';
import { newId } from './ids.ts';

export type Asset = AssetOf[AssetKind];

/** What every record of an asset begins with. */
export type Base = Pick<
  Asset,
  'version' | 'arch' | 'provider' | 'source' | 'proofs' | 'sha256' | 'size_bytes' | 'is_default' | 'created_at_ms'
> & { distro: string | null };

/** Beside the main file, by name. */
export type Beside = Readonly<Record<string, LandedFile>>;

export interface Sort<K extends AssetKind> {
  /** Name of the main file. */
  file: string;
  /** Ceilings: bytes over the wire, bytes on disk. */
  limits: { download_bytes: number; output_bytes: number };
  /** kernel '6.12' */
  name(asset: AssetOf[K]): string;
  /** Throws unless the files in `dir` are what they have to be. */
  check(dir: string, base: Base, beside: Beside): Promise<void>;
  record(base: Base, beside: Beside): AssetOf[K];
  /** What else of the record is on disk. */
  beside(asset: AssetOf[K]): Beside;
}

const GIB = 1024 ** 3;

const landed = (sha256: string | null, size_bytes: number | null): LandedFile | undefined =>
  sha256 === null || size_bytes === null ? undefined : { sha256, size_bytes };

const only = (files: Record<string, LandedFile | undefined>): Beside =>
  Object.fromEntries(Object.entries(files).flatMap(([name, file]) => (file === undefined ? [] : [[name, file]])));

export const SORTS: { readonly [K in AssetKind]: Sort<K> } = {
  kernel: {
    file: 'vmlinux',
    limits: { download_bytes: GIB, output_bytes: 2 * GIB },
    name: kernel => `kernel '${kernel.version}'`,
    check: (dir, { arch }) => checkKernel(join(dir, 'vmlinux'), arch),
    record: ({ distro: _distro, ...base }, { 'modules.cpio': modules }) => ({
      id: newId('krn'),
      ...base,
      modules_sha256: modules?.sha256 ?? null,
      modules_size_bytes: modules?.size_bytes ?? null,
    }),
    beside: k => only({ 'modules.cpio': landed(k.modules_sha256, k.modules_size_bytes) }),
  },
  rootfs: {
    file: 'rootfs.tar',
    limits: { download_bytes: 16 * GIB, output_bytes: 64 * GIB },
    name: rootfs => `archive '${rootfs.distro}:${rootfs.version}'`,
    check: dir => checkArchive(join(dir, 'rootfs.tar')),
    record: ({ distro, ...base }) => ({ id: newId('rfs'), distro: distro ?? 'unknown', ...base }),
    beside: () => ({}),
  },
  firecracker: {
    file: 'firecracker',
    limits: { download_bytes: GIB / 4, output_bytes: GIB / 2 },
    name: firecracker => `Firecracker '${firecracker.version}'`,
    check: async (dir, base, { jailer }) => {
      if (jailer !== undefined) await checkProgram(join(dir, 'jailer'), base.arch, 'jailer');
      await checkFirecracker(join(dir, 'firecracker'), base);
    },
    record: ({ distro: _distro, ...base }, { jailer }) => ({
      id: newId('fcr'),
      ...base,
      jailer_sha256: jailer?.sha256 ?? null,
      jailer_size_bytes: jailer?.size_bytes ?? null,
    }),
    beside: f => only({ jailer: landed(f.jailer_sha256, f.jailer_size_bytes) }),
  },
};

/** Hashes the files of an asset again; `unverified` names the one that is not what was recorded. */
export const verifyFiles = async <K extends AssetKind>(
  kind: K,
  dir: string,
  asset: AssetOf[K],
  signal?: AbortSignal,
): Promise<void> => {
  const sort: Sort<K> = SORTS[kind];
  await verifyFile(join(dir, sort.file), asset, signal);
  for (const [name, file] of Object.entries(sort.beside(asset))) await verifyFile(join(dir, name), file, signal);
};
