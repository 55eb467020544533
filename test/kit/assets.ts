/** One real kernel and one real root file system for all tests, kept in <repo>/.cache/assets between runs. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { downloadDebianKernel, type KernelFiles } from '../../src/assets/debian-kernel.ts';
import { downloadDebianRootfs, type RootfsFile } from '../../src/assets/debian-rootfs.ts';
import { cached } from './cache.ts';

export interface TestKernel extends KernelFiles {
  dir: string;
  vmlinux: string;
  bzImage: string;
  modules: string;
}

export interface TestRootfs extends RootfsFile {
  dir: string;
  tar: string;
}

/** Changes with the month, for newer packages, and with the code that makes the asset. */
const age = async (files: readonly string[]): Promise<string> => {
  const hash = createHash('sha256').update(new Date().toISOString().slice(0, 7));
  for (const name of files) hash.update(await readFile(join(import.meta.dirname, '../../src/assets', `${name}.ts`)));
  return hash.digest('hex').slice(0, 12);
};

const KERNEL_CODE = ['apt', 'ar', 'bzimage', 'cpio', 'deb', 'debian-kernel', 'elf', 'lz4', 'modindex', 'modules'];
const ROOTFS_CODE = ['apt', 'debian-rootfs'];

const quiet = { signal: new AbortController().signal, onProgress: () => {}, onLog: () => {} };

/** The newest cloud kernel of that series, unpacked, with further modules. */
export const testKernel = async (version: '6.12' | '6.1', modules: readonly string[] = []): Promise<TestKernel> => {
  const key = [`kernel-${version}`, ...modules].join('+');
  const record = await cached<KernelFiles>('assets', `${key}-${await age(KERNEL_CODE)}`, dir =>
    downloadDebianKernel({ version, modules, dir, ...quiet }),
  );
  const at = (name: string) => join(record.dir, name);
  return { ...record, vmlinux: at('vmlinux'), bzImage: at('bzImage'), modules: at('modules.cpio') };
};

/** Debian 12's minimal root file system, with further packages. */
export const testRootfs = async (packages: readonly string[] = []): Promise<TestRootfs> => {
  const record = await cached<RootfsFile>(
    'assets',
    `${['rootfs-12', ...packages].join('+')}-${await age(ROOTFS_CODE)}`,
    dir => downloadDebianRootfs({ version: '12', packages, dir, owner: dir, ...quiet }),
  );
  return { ...record, tar: join(record.dir, 'rootfs.tar') };
};
