/**
 * One real kernel and one real root file system for all tests, kept in <repo>/.cache/assets between runs.
 *
 * INVARIANTS: a cache folder is complete or not there (made beside it, then renamed). Of processes that want the same one, one
 * makes it while the others wait on its lock folder; a lock whose process is dead is taken over.
 */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { downloadDebianKernel, type KernelFiles } from '../../src/assets/debian-kernel.ts';
import { downloadDebianRootfs, type RootfsFile } from '../../src/assets/debian-rootfs.ts';
import { poll } from '../../src/lib/deadline.ts';
import { ensureDir } from '../../src/lib/files.ts';

const CACHE = join(import.meta.dirname, '../../.cache/assets');

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

const parsed = async <T>(dir: string): Promise<T | undefined> =>
  readFile(join(dir, 'record.json'), 'utf8').then(
    text => JSON.parse(text),
    () => undefined,
  );

const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

/** Takes the lock, or undefined if a living process has it. */
const lock = async (path: string): Promise<true | undefined> => {
  try {
    await writeFile(path, String(process.pid), { flag: 'wx' });
    return true;
  } catch {
    const pid = Number(await readFile(path, 'utf8').catch(() => '0'));
    if (pid > 0 && !alive(pid)) await rm(path, { force: true });
    return undefined;
  }
};

/** The record of a cached folder, made by `make` if it is not there yet. */
const cached = async <T>(key: string, make: (dir: string) => Promise<T>): Promise<T & { dir: string }> => {
  const dir = join(await ensureDir(CACHE), key);
  const guard = `${dir}.lock`;
  const found = await poll(`the cache of ${key}`, 300_000, async () => (await parsed<T>(dir)) ?? (await lock(guard)), {
    every_ms: 200,
  });
  if (found !== true) return { ...found, dir };
  const temp = `${dir}.${randomUUID()}.tmp`;
  try {
    const now = await parsed<T>(dir);
    if (now !== undefined) return { ...now, dir };
    await mkdir(temp, { mode: 0o755 });
    const record = await make(temp);
    await writeFile(join(temp, 'record.json'), JSON.stringify(record));
    await rm(dir, { recursive: true, force: true });
    await rename(temp, dir);
    await prune(key);
    return { ...record, dir };
  } finally {
    await rm(temp, { recursive: true, force: true });
    await rm(guard, { force: true });
  }
};

/** Changes with the month, for newer packages, and with the code that makes the asset. */
const age = async (files: readonly string[]): Promise<string> => {
  const hash = createHash('sha256').update(new Date().toISOString().slice(0, 7));
  for (const name of files) hash.update(await readFile(join(import.meta.dirname, '../../src/assets', `${name}.ts`)));
  return hash.digest('hex').slice(0, 12);
};

const KERNEL_CODE = ['apt', 'ar', 'bzimage', 'cpio', 'deb', 'debian-kernel', 'elf', 'lz4', 'modindex', 'modules'];
const ROOTFS_CODE = ['apt', 'debian-rootfs'];

/** Removes what an older key left, if nothing can be using it any more. */
const prune = async (key: string): Promise<void> => {
  const name = key.slice(0, key.lastIndexOf('-') + 1);
  for (const other of await readdir(CACHE)) {
    const path = join(CACHE, other);
    const old = other.startsWith(name) && !other.startsWith(key) && Date.now() - (await stat(path)).mtimeMs > 3_600_000;
    if (old) await rm(path, { recursive: true, force: true });
  }
};

const quiet = { signal: new AbortController().signal, onProgress: () => {}, onLog: () => {} };

/** The newest cloud kernel of that series, unpacked. */
export const testKernel = async (version: '6.12' | '6.1'): Promise<TestKernel> => {
  const record = await cached<KernelFiles>(`kernel-${version}-${await age(KERNEL_CODE)}`, dir =>
    downloadDebianKernel({ version, dir, ...quiet }),
  );
  const at = (name: string) => join(record.dir, name);
  return { ...record, vmlinux: at('vmlinux'), bzImage: at('bzImage'), modules: at('modules.cpio') };
};

/** Debian 12's minimal root file system, with further packages. */
export const testRootfs = async (packages: readonly string[] = []): Promise<TestRootfs> => {
  const record = await cached<RootfsFile>(`${['rootfs-12', ...packages].join('+')}-${await age(ROOTFS_CODE)}`, dir =>
    downloadDebianRootfs({ version: '12', packages, dir, ...quiet }),
  );
  return { ...record, tar: join(record.dir, 'rootfs.tar') };
};
