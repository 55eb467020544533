/** A kernel from Debian's signed packages: found by apt, taken apart in streams, kept as what a microVM boots. */
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { LandedFile } from '../api/pipeline.ts';
import { RunError, run } from '../lib/proc.ts';
import { type Apt, candidate, packageNames, refreshLists } from './apt.ts';
import type { DebEntry } from './deb.ts';
import { builtinNames, closure, type KernelModule, moduleName, modulesCpio, NEEDED, parseModule } from './modules.ts';
import { runPipeline } from './pipeline.ts';
import type { Landed, PipelineInput } from './pipeline_input.ts';
import { matches, newestFirst } from './versions.ts';

const MAX_MODULE = 64 * 1024 * 1024;
const MAX_TABLE = 16 * 1024 * 1024;

const PREFIX = 'linux-image-';

/** The releases among these package names, newest first. Meta packages (6.12-cloud-amd64), debug and unsigned ones are none. */
export const cloudReleases = (names: readonly string[]): string[] =>
  newestFirst(
    names
      .filter(name => name.startsWith(PREFIX))
      .map(name => name.slice(PREFIX.length))
      .filter(release => /^\d+\.\d+\.\d+[a-z0-9.+~-]*-cloud-amd64$/.test(release)),
  );

/** The newest release that is meant by a wish and can be had. */
const find = async (apt: Apt, wish: string | undefined): Promise<string | undefined> => {
  for (const release of cloudReleases(await packageNames(apt, PREFIX)).filter(r => matches(r, wish))) {
    if ((await candidate(apt, `${PREFIX}${release}`)) !== undefined) return release;
  }
  return undefined;
};

/** What a wish means; where the system's lists are empty or stale, lists of our own are asked. */
export const findDebianKernel = async (apt: Apt, wish: string | undefined): Promise<string> => {
  const found = (await find(apt, wish)) ?? (await find(await refreshLists(apt), wish));
  if (found !== undefined) return found;
  const known = cloudReleases(await packageNames(apt, PREFIX)).slice(0, 6);
  throw new Fault(
    'not_found',
    `Cannot find kernel '${wish ?? 'newest'}': the package archive has no such cloud kernel.`,
    {
      hint:
        known.length === 0 ? 'Only the package archive of Debian has cloud kernels.' : `It has: ${known.join(', ')}.`,
    },
  );
};

/** The releases that can be had, newest first. */
export const debianKernels = async (apt: Apt): Promise<string[]> => {
  const names = async (from: Apt) => cloudReleases(await packageNames(from, PREFIX));
  let lists = apt;
  let known = await names(lists);
  if (known.length === 0) {
    lists = await refreshLists(apt);
    known = await names(lists);
  }
  const there = await Promise.all(known.map(release => candidate(lists, `${PREFIX}${release}`)));
  return known.filter((_, i) => there[i] !== undefined);
};

/** What is kept of a package while it streams by, beside the kernel itself. */
interface Parts {
  readonly release: string;
  config: string | undefined;
  /** modules.builtin, modules.order and the like. */
  readonly tables: Map<string, Buffer>;
  /** Module name -> path below lib/modules/<release>, and the file that holds it as packed. */
  readonly modules: Map<string, { path: string; file: string }>;
}

/** Takes the wanted files out of the package. Modules, which are many, go to files of the folder `work` under our own names. */
const partsOf = (release: string, work: string, signal: AbortSignal) => {
  const parts: Parts = { release, config: undefined, tables: new Map(), modules: new Map() };
  const collect = async (entry: DebEntry): Promise<void> => {
    const path = entry.path.replace(/^usr\//, '');
    const below = path.startsWith(`lib/modules/${release}/`) ? path.slice(`lib/modules/${release}/`.length) : '';
    if (path === `boot/config-${release}`) parts.config = (await entry.bytes(MAX_TABLE)).toString('latin1');
    else if (/^modules\.(builtin|builtin\.modinfo|order)$/.test(below))
      parts.tables.set(below, await entry.bytes(MAX_TABLE));
    else if (/^kernel\/[\w+./-]+\.ko(\.xz|\.zst|\.gz)?$/.test(below) && !below.includes('..')) {
      const end = below.slice(below.lastIndexOf('.ko'));
      const file = join(work, `${parts.modules.size}${end}`);
      await writeFile(file, await entry.bytes(MAX_MODULE), { signal });
      parts.modules.set(moduleName(below), { path: below, file });
    }
  };
  return { parts, collect };
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

/** Writes the archive of the modules that a microVM needs, and of `more`, to `out`. */
const landModules = async (
  parts: Parts,
  out: string,
  more: readonly string[],
  signal: AbortSignal,
): Promise<LandedFile> => {
  checkOptions(parts);
  const modules = await closure(new Set(parts.modules.keys()), more, names => readModules(parts, names, signal));
  const archive = modulesCpio(parts.release, modules, parts.tables);
  await writeFile(out, archive, { signal, flush: true });
  return { sha256: createHash('sha256').update(archive).digest('hex'), size_bytes: archive.length };
};

export interface KernelPackage {
  release: string;
  /** Private and empty. */
  work: string;
  /** Modules to pack besides those that a microVM needs; they are not loaded at boot. */
  modules?: readonly string[];
}

/** Runs the pipeline of a kernel package, and makes the archive of its modules out of what else is in the package: `modules.cpio`. */
export const landDebianKernel = async (
  input: PipelineInput,
  { release, work, modules = [] }: KernelPackage,
): Promise<Landed> => {
  const { dir, signal, onProgress } = input;
  const { parts, collect } = partsOf(release, work, signal);
  const landed = await runPipeline({ ...input, collect });
  try {
    onProgress({ stage: 'modules', done: 0, total: 1, unit: 'steps' });
    const archive = await landModules(parts, join(dir, 'modules.cpio'), modules, signal);
    return { ...landed, beside: { ...landed.beside, 'modules.cpio': archive } };
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    if (!(error instanceof RunError)) throw error;
    const code = error.errno === 'ENOENT' ? 'host' : 'unsupported';
    throw new Fault(code, `Cannot unpack the modules: ${error.message}.`, { cause: error });
  }
};
