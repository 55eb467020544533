/** A kernel from Debian's signed packages: found and fetched by apt, taken apart in streams, kept as what a microVM boots. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { JobProgress } from '../api/job.ts';
import { sha256File } from '../lib/files.ts';
import { RunError, run } from '../lib/proc.ts';
import { type Apt, type AptPackage, candidate, downloadPackage, openApt, packageNames, refreshLists } from './apt.ts';
import { elfOfBzImage } from './bzimage.ts';
import { readDeb } from './member.ts';
import { builtinNames, closure, type KernelModule, moduleName, modulesCpio, NEEDED, parseModule } from './modules.ts';
import { verifyFile } from './verify.ts';

export interface KernelDownload {
  /** A release or a series: `6.12.43+deb12-cloud-amd64`, `6.12`, `6.1`; the newest if not given. */
  version?: string | undefined;
  /** Modules to pack besides those that a microVM needs; they are not loaded at boot. */
  modules?: readonly string[] | undefined;
  /** Empty and private; ends with `vmlinux`, `bzImage` and `modules.cpio` in it. */
  dir: string;
  signal: AbortSignal;
  onProgress: (progress: JobProgress) => void;
  onLog: (line: string) => void;
}

export interface KernelFiles {
  version: string;
  arch: Arch;
  /** The package and its version. */
  package: string;
  sha256: string;
  size_bytes: number;
  modules_sha256: string;
  modules_size_bytes: number;
}

const MAX_IMAGE = 128 * 1024 * 1024;
const MAX_MODULE = 64 * 1024 * 1024;
const MAX_TABLE = 16 * 1024 * 1024;

const PREFIX = 'linux-image-';

/** Numbers compare as numbers: 6.1.0-9 < 6.1.0-10 < 6.12.1. */
const byRelease = (a: string, b: string): number => a.localeCompare(b, 'en', { numeric: true });

/** The releases among these package names, newest first. Meta packages (6.12-cloud-amd64), debug and unsigned ones are none. */
export const cloudReleases = (names: readonly string[]): string[] =>
  names
    .filter(name => name.startsWith(PREFIX))
    .map(name => name.slice(PREFIX.length))
    .filter(release => /^\d+\.\d+\.\d+[a-z0-9.+~-]*-cloud-amd64$/.test(release))
    .sort(byRelease)
    .reverse();

/** True if `release` is `version` or belongs to that series: 6.1 has 6.1.0-40, and not 6.12.1. */
export const matches = (release: string, version: string | undefined): boolean =>
  version === undefined || release === version || ['.', '-', '+'].some(c => release.startsWith(`${version}${c}`));

/** The newest package of that version that can be had, or a fault that names what there is. */
const find = async (apt: Apt, version: string | undefined): Promise<AptPackage | undefined> => {
  for (const release of cloudReleases(await packageNames(apt, PREFIX)).filter(r => matches(r, version))) {
    const found = await candidate(apt, `${PREFIX}${release}`);
    if (found !== undefined) return found;
  }
  return undefined;
};

const noSuch = async (apt: Apt, version: string | undefined): Promise<Fault> => {
  const known = cloudReleases(await packageNames(apt, PREFIX)).slice(0, 6);
  return new Fault(
    'not_found',
    `Cannot find kernel '${version ?? 'newest'}': the package archive has no such cloud kernel.`,
    {
      hint:
        known.length === 0 ? 'Only the package archive of Debian has cloud kernels.' : `It has: ${known.join(', ')}.`,
    },
  );
};

/** Finds and downloads the package; where the system's lists are empty or stale, once more with lists of our own. */
const fetchPackage = async (system: Apt, input: KernelDownload): Promise<{ pkg: AptPackage; path: string }> => {
  for (let apt = system; ; apt = await refreshLists(system)) {
    const pkg = await find(apt, input.version);
    if (pkg !== undefined) {
      input.onLog(`${pkg.name} ${pkg.version}`);
      const path = await downloadPackage(apt, pkg, done =>
        input.onProgress({ stage: 'download', done, total: pkg.size_bytes, unit: 'bytes' }),
      );
      if (path !== undefined) return { pkg, path };
    }
    if (apt.lists === 'private') throw await noSuch(apt, input.version);
    input.onLog('The lists of the system do not have it; fetching lists of our own.');
    input.onProgress({ stage: 'package lists', done: 0, total: 1, unit: 'steps' });
  }
};

interface Parts {
  release: string;
  image: Buffer;
  config: string | undefined;
  /** modules.builtin, modules.order and the like. */
  tables: Map<string, Buffer>;
  /** Module name -> path below lib/modules/<release>, and the file that holds it as packed. */
  modules: Map<string, { path: string; file: string }>;
}

/** Takes the wanted files out of the package. Modules, which are many, go to files of the working folder under our own names. */
const takeApart = async (deb: string, release: string, work: string, input: KernelDownload): Promise<Parts> => {
  const parts: Parts = { release, image: Buffer.alloc(0), config: undefined, tables: new Map(), modules: new Map() };
  const onBytes = (done: number, total: number) => input.onProgress({ stage: 'unpack', done, total, unit: 'bytes' });
  await readDeb(deb, { signal: input.signal, onBytes }, async entry => {
    const path = entry.path.replace(/^usr\//, '');
    const below = path.startsWith(`lib/modules/${release}/`) ? path.slice(`lib/modules/${release}/`.length) : '';
    if (path === `boot/vmlinuz-${release}`) parts.image = await entry.bytes(MAX_IMAGE);
    else if (path === `boot/config-${release}`) parts.config = (await entry.bytes(MAX_TABLE)).toString('latin1');
    else if (/^modules\.(builtin|builtin\.modinfo|order)$/.test(below))
      parts.tables.set(below, await entry.bytes(MAX_TABLE));
    else if (/^kernel\/[\w+./-]+\.ko(\.xz|\.zst|\.gz)?$/.test(below) && !below.includes('..')) {
      const end = below.slice(below.lastIndexOf('.ko'));
      const file = join(work, `${parts.modules.size}${end}`);
      await writeFile(file, await entry.bytes(MAX_MODULE), { signal: input.signal });
      parts.modules.set(moduleName(below), { path: below, file });
    }
  });
  if (parts.image.length === 0) throw new Fault('unsupported', `Cannot use the package: it has no kernel ${release}.`);
  return parts;
};

/** Refuses a kernel that lacks what the guest protocol needs, by the name of the option. */
const checkOptions = (parts: Parts): void => {
  const builtin = new Set(builtinNames(parts.tables.get('modules.builtin')));
  const refuse = (option: string) =>
    new Fault('unsupported', `Cannot use kernel ${parts.release}: it lacks ${option}.`, {
      hint: 'Take another version.',
    });
  for (const [name, option] of NEEDED) if (!builtin.has(name) && !parts.modules.has(name)) throw refuse(option);
  for (const option of ['CONFIG_BLK_DEV_INITRD', 'CONFIG_DEVTMPFS', 'CONFIG_TMPFS'])
    if (parts.config !== undefined && !parts.config.includes(`\n${option}=y\n`)) throw refuse(option);
};

const PROGRAMS: Record<string, string[]> = {
  '.xz': ['xz', '-d'],
  '.zst': ['zstd', '-dq', '--rm'],
  '.gz': ['gzip', '-d'],
};

/** Reads modules by name; compressed ones are decompressed in place, all in one run of the program. */
const readModules = async (parts: Parts, names: string[], signal: AbortSignal): Promise<KernelModule[]> => {
  const wanted = names.flatMap(name => parts.modules.get(name) ?? []);
  for (const [end, program] of Object.entries(PROGRAMS)) {
    const files = wanted.map(m => m.file).filter(file => file.endsWith(end));
    if (files.length > 0) await run([...program, '--', ...files], { signal });
  }
  const read: KernelModule[] = [];
  for (const { path, file } of wanted) {
    const data = await readFile(file.replace(/\.(xz|zst|gz)$/, ''), { signal });
    if (data.length > MAX_MODULE) throw new Fault('unsupported', `Cannot use module ${path}: it is too long.`);
    read.push(parseModule(path, data));
  }
  return read;
};

const build = async (deb: string, pkg: AptPackage, work: string, input: KernelDownload): Promise<KernelFiles> => {
  const { dir, signal, onProgress } = input;
  const parts = await takeApart(deb, pkg.name.slice(PREFIX.length), work, input);
  checkOptions(parts);
  onProgress({ stage: 'kernel', done: 0, total: 2, unit: 'steps' });
  const vmlinux = await elfOfBzImage(parts.image);
  signal.throwIfAborted();
  await writeFile(join(dir, 'bzImage'), parts.image, { signal });
  await writeFile(join(dir, 'vmlinux'), vmlinux, { signal });
  onProgress({ stage: 'modules', done: 1, total: 2, unit: 'steps' });
  const modules = await closure(new Set(parts.modules.keys()), input.modules ?? [], names =>
    readModules(parts, names, signal),
  );
  const archive = modulesCpio(parts.release, modules, parts.tables);
  await writeFile(join(dir, 'modules.cpio'), archive, { signal });
  onProgress({ stage: 'modules', done: 2, total: 2, unit: 'steps' });
  const hash = (data: Buffer) => createHash('sha256').update(data).digest('hex');
  return {
    version: parts.release,
    arch: 'x86_64',
    package: `${pkg.name} ${pkg.version}`,
    sha256: hash(vmlinux),
    size_bytes: vmlinux.length,
    modules_sha256: hash(archive),
    modules_size_bytes: archive.length,
  };
};

/** Downloads a kernel of Debian's cloud flavour into `dir`. Leaves nothing but the three files there. */
export const downloadDebianKernel = async (input: KernelDownload): Promise<KernelFiles> => {
  const work = join(input.dir, '.work');
  await mkdir(work, { mode: 0o700 });
  try {
    input.onProgress({ stage: 'find the package', done: 0, total: 1, unit: 'steps' });
    const apt = await openApt(work, input.signal, input.onLog);
    const { pkg, path } = await fetchPackage(apt, input);
    if ((await sha256File(path, input.signal)) !== pkg.sha256)
      throw new Fault('unverified', `Cannot use ${pkg.name}: its SHA-256 is not the one in the signed index.`);
    return await build(path, pkg, work, input);
  } catch (error) {
    if (input.signal.aborted) throw input.signal.reason;
    if (error instanceof Error && 'code' in error && error.code === 'ENOSPC')
      throw new Fault('no_room', `Cannot keep the kernel: the disk of ${input.dir} is full.`, { cause: error });
    if (error instanceof RunError)
      throw new Fault(
        error.errno === 'ENOENT' ? 'host' : 'unsupported',
        `Cannot unpack the kernel: ${error.message}.`,
        {
          cause: error,
        },
      );
    throw error;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
};

/** Hashes the files of a kernel again; `unverified` names the one that is not what was recorded. */
export const verifyKernel = async (
  dir: string,
  record: Pick<KernelFiles, 'sha256' | 'size_bytes' | 'modules_sha256' | 'modules_size_bytes'>,
): Promise<void> => {
  await verifyFile(join(dir, 'vmlinux'), record);
  await verifyFile(join(dir, 'modules.cpio'), { sha256: record.modules_sha256, size_bytes: record.modules_size_bytes });
};
