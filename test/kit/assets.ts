/** One real kernel and one real root file system for all tests, kept in <repo>/.cache/assets between runs. */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Provider } from '../../src/api/provider.ts';
import { openApt } from '../../src/assets/apt.ts';
import { findDebianKernel, landDebianKernel } from '../../src/assets/debian-kernel.ts';
import { debianVersion } from '../../src/assets/debian-rootfs.ts';
import { runPipeline } from '../../src/assets/pipeline.ts';
import type { PipelineInput } from '../../src/assets/pipeline_input.ts';
import { varsOf } from '../../src/assets/provider.ts';
import { SHIPPED } from '../../src/assets/shipped.ts';
import { ensureDir } from '../../src/lib/files.ts';
import { cached } from './cache.ts';

export interface KernelFiles {
  version: string;
  arch: 'x86_64';
  /** The package and its version. */
  source: string;
  sha256: string;
  size_bytes: number;
  modules_sha256: string;
  modules_size_bytes: number;
}

export interface TestKernel extends KernelFiles {
  dir: string;
  vmlinux: string;
  modules: string;
}

export interface RootfsFile {
  distro: 'debian';
  version: string;
  arch: 'x86_64';
  sha256: string;
  size_bytes: number;
}

export interface TestRootfs extends RootfsFile {
  dir: string;
  tar: string;
}

/** How a test fetches something: where to, and what it wants to see of it. */
export type Fetching = { dir: string } & Partial<Pick<PipelineInput, 'signal' | 'onProgress' | 'onLog'>>;

const LIMIT = 8 * 1024 ** 3;

const rowOf = (name: string) => SHIPPED.find(row => row.name === name) ?? Promise.reject(new Error(`no ${name}`));

const inputOf = async (name: string, version: string, fetching: Fetching): Promise<PipelineInput> => {
  const row: Pick<Provider, 'type' | 'config' | 'pipeline' | 'keys' | 'unverified'> = await rowOf(name);
  return {
    ...{ pipeline: row.pipeline, keys: row.keys, unverified: row.unverified },
    vars: varsOf(row, { version, arch: 'x86_64' }),
    ...{ file: name === 'debian' ? 'vmlinux' : 'rootfs.tar', owner: fetching.dir },
    limits: { download_bytes: LIMIT, output_bytes: LIMIT },
    ...{ signal: new AbortController().signal, onProgress: () => {}, onLog: () => {} },
    ...fetching,
  };
};

/** Works in a folder that goes away. */
const inWork = async <T>(task: (work: string) => Promise<T>): Promise<T> => {
  const work = await mkdtemp(join(tmpdir(), 'nexus-fetch-'));
  try {
    return await task(work);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
};

/** A kernel of Debian's, as the shipped provider fetches it. */
export const fetchKernel = (
  fetching: Fetching & { version?: string; modules?: readonly string[] },
): Promise<KernelFiles> =>
  inWork(async work => {
    const { version: wish, modules = [], ...rest } = fetching;
    const input = await inputOf('debian', '0', rest);
    const apt = await openApt(await ensureDir(join(work, 'apt')), input.signal, input.onLog);
    const release = await findDebianKernel(apt, wish);
    const landed = await landDebianKernel(await inputOf('debian', release, rest), {
      ...{ release, modules },
      work: await ensureDir(join(work, 'modules')),
    });
    const archive = landed.beside['modules.cpio'] ?? { sha256: '', size_bytes: 0 };
    return {
      ...{ version: release, arch: 'x86_64', source: landed.source, ...landed.file },
      ...{ modules_sha256: archive.sha256, modules_size_bytes: archive.size_bytes },
    };
  });

/** A root file system of Debian's, as the shipped provider makes it. */
export const fetchRootfs = async (
  fetching: Fetching & { version: string; packages?: readonly string[]; owner?: string },
): Promise<RootfsFile> => {
  const { version: wish, ...rest } = fetching;
  const version = debianVersion(wish);
  const landed = await runPipeline(await inputOf('debian-rootfs', version, rest));
  return { distro: 'debian', version, arch: 'x86_64', ...landed.file };
};

/** Changes with the month, for newer packages, and with the code that makes the asset. */
const age = async (files: readonly string[]): Promise<string> => {
  const hash = createHash('sha256').update(new Date().toISOString().slice(0, 7));
  for (const name of files) hash.update(await readFile(join(import.meta.dirname, '../../src/assets', `${name}.ts`)));
  return hash.digest('hex').slice(0, 12);
};

const KERNEL_CODE = ['apt', 'ar', 'bzimage', 'cpio', 'deb', 'debian-kernel', 'elf', 'lz4', 'modindex', 'modules'];
const ROOTFS_CODE = ['apt', 'debian-rootfs'];

/** The newest cloud kernel of that series, unpacked, with further modules. */
export const testKernel = async (version: '6.12' | '6.1', modules: readonly string[] = []): Promise<TestKernel> => {
  const key = [`kernel-${version}`, ...modules].join('+');
  const record = await cached<KernelFiles>('assets', `${key}-${await age(KERNEL_CODE)}`, dir =>
    fetchKernel({ version, modules, dir }),
  );
  const at = (name: string) => join(record.dir, name);
  return { ...record, vmlinux: at('vmlinux'), modules: at('modules.cpio') };
};

/** Debian 12's minimal root file system, with further packages. */
export const testRootfs = async (packages: readonly string[] = []): Promise<TestRootfs> => {
  const key = ['rootfs-12', ...packages].join('+');
  const record = await cached<RootfsFile>('assets', `${key}-${await age(ROOTFS_CODE)}`, dir =>
    fetchRootfs({ version: '12', packages, dir }),
  );
  return { ...record, tar: join(record.dir, 'rootfs.tar') };
};
