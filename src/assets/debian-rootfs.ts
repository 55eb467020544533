/**
 * A root file system of Debian, made by mmdebstrap from the archive's signed packages, without root where need be. Its mirror is
 * the one that the machine's own apt uses; the signature is checked with Debian's own keyring, always.
 */
import { mkdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { JobProgress } from '../api/job.ts';
import { exists, sha256File } from '../lib/files.ts';
import { procsWithEnv } from '../lib/marked.ts';
import { RunError, type RunOptions, type RunResult, runAny, signalProc } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { type Apt, aptFault, aptSources, aptTransport, openApt, refreshLists } from './apt.ts';
import { MAPPED, makeScratch, removeScratch } from './scratch.ts';
import { verifyFile } from './verify.ts';

export interface RootfsDownload {
  /** A number or code name: `12`, `bookworm`. */
  version: string;
  /** Packages to add to the minimal system. */
  packages: readonly string[];
  /** Empty and private; ends with `rootfs.tar` in it. */
  dir: string;
  /** Whose download it is: a path of the caller's own, by which `sweepScratch` finds what a killed one left. */
  owner: string;
  signal: AbortSignal;
  onProgress: (progress: JobProgress) => void;
  onLog: (line: string) => void;
}

export interface RootfsFile {
  distro: string;
  version: string;
  arch: Arch;
  sha256: string;
  size_bytes: number;
}

/** `epoch` is the day of the release, seconds: nothing in the archive is younger, so that one set of packages gives one archive. */
const RELEASES = [
  { version: '11', codename: 'bullseye', epoch: Date.UTC(2021, 7, 14) / 1000 },
  { version: '12', codename: 'bookworm', epoch: Date.UTC(2023, 5, 10) / 1000 },
  { version: '13', codename: 'trixie', epoch: Date.UTC(2025, 7, 9) / 1000 },
];

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** What an agent looks for first, on top of the minimal system: some 25 MB. */
const BASE = ['ca-certificates', 'curl', 'iproute2', 'kmod', 'procps'];

/** Lines of mmdebstrap that begin a stage, in their order. */
const STAGES: readonly (readonly [RegExp, string])[] = [
  [/apt-get update/, 'package lists'],
  [/downloading packages/, 'download packages'],
  [/extracting archives/, 'unpack packages'],
  [/installing essential/, 'install essential packages'],
  [/installing remaining/, 'install further packages'],
  [/cleaning package lists/, 'clean'],
  [/creating tarball/, 'write the archive'],
];

const release = (version: string): (typeof RELEASES)[number] => {
  const found = RELEASES.find(
    r => version === r.version || version === r.codename || version.startsWith(`${r.version}.`),
  );
  if (found !== undefined) return found;
  const known = RELEASES.map(r => `${r.version} (${r.codename})`).join(', ');
  throw new Fault('not_found', `Cannot find Debian '${version}': the known releases are ${known}.`);
};

/** The releases that can be made. */
export const debianReleases = (): string[] => RELEASES.map(r => r.version).reverse();

/** The release that is meant by a number or a code name; the newest where nothing is. */
export const debianVersion = (wish: string | undefined): string =>
  wish === undefined ? (debianReleases()[0] ?? '') : release(wish).version;

/** The machine's own sources of Debian, as [uri, kind]; kind is '' or what follows the code name: -updates, -security. */
const debianSources = async (apt: Apt): Promise<[string, string][]> => {
  const suite = new RegExp(`^(?:${RELEASES.map(r => r.codename).join('|')})(|-updates|-security)$`);
  return (await aptSources(apt)).flatMap(({ uri, codename, origin }): [string, string][] => {
    const kind = suite.exec(codename)?.[1];
    return origin === 'Debian' && kind !== undefined && /^(https?|file|mirror):\S+$/.test(uri) ? [[uri, kind]] : [];
  });
};

/**
 * The sources of that release as deb822 text: the machine's own sources of Debian, with its code name in place of the machine's.
 * Who is Debian says the release file of the lists; where they are missing they are fetched, for us alone.
 */
export const sourcesFor = async (apt: Apt, codename: string): Promise<string> => {
  let found = await debianSources(apt);
  if (!found.some(([, kind]) => kind === '')) found = await debianSources(await refreshLists(apt));
  if (!found.some(([, kind]) => kind === ''))
    throw new Fault(
      'host',
      "Cannot make a Debian root file system: apt on this host has no source of Debian's archive.",
      {
        hint: "Add one to /etc/apt/sources.list.d, signed by Debian's keyring.",
      },
    );
  const stanzas = found.map(
    ([uri, kind]) => `Types: deb\nURIs: ${uri}\nSuites: ${codename}${kind}\nComponents: main\nSigned-By: ${KEYRING}\n`,
  );
  return [...new Set(stanzas)].join('\n');
};

/** True if the program runs and ends with 0. */
const works = async (argv: readonly string[], signal: AbortSignal): Promise<boolean> => {
  try {
    return (await runAny(argv, { signal, timeout_ms: 10_000 })).code === 0;
  } catch (error) {
    if (error instanceof RunError) return false;
    throw error;
  }
};

const PRIVATE = ['unshare', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];

/** How mmdebstrap becomes (or plays) root here. With root, in namespaces of its own: nothing stays mounted, no process outlives it. */
export const wayToRoot = async (signal: AbortSignal): Promise<{ mode: string; prefix: string[] }> => {
  if (process.getuid?.() === 0)
    return { mode: 'root', prefix: (await works([...PRIVATE, 'true'], signal)) ? PRIVATE : [] };
  if (await works([...MAPPED, 'true'], signal)) return { mode: 'unshare', prefix: [] };
  if ((await works(['fakechroot', '--version'], signal)) && (await works(['fakeroot', '--version'], signal)))
    return { mode: 'fakechroot', prefix: [] };
  throw new Fault(
    'host',
    'Cannot make a root file system without root: there is no range of user IDs in /etc/subuid, and no fakechroot.',
    {
      hint: 'apt-get install fakechroot fakeroot',
    },
  );
};

/**
 * No trace of this host in the guest. Never clear "$1"/tmp here: mmdebstrap keeps in it the configuration that points apt into the
 * new system, and without it the cleaning that follows would clear the lists and caches of the host. It clears /tmp itself, later.
 */
const HOOKS = [
  'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/hostname "$1"/etc/resolv.conf',
  ': > "$1"/etc/machine-id',
];

const argvFor = (input: RootfsDownload, codename: string, mode: string, transport: readonly string[]): string[] => [
  'mmdebstrap',
  `--mode=${mode}`,
  '--variant=minbase',
  '--format=tar',
  `--include=${[...new Set([...BASE, ...input.packages])].join(',')}`,
  `--keyring=${KEYRING}`,
  ...transport.map(line => `--aptopt=${line.replace('=', ' "')}";`),
  '--aptopt=Acquire::Retries "3";',
  ...HOOKS.map(hook => `--customize-hook=${hook}`),
  codename,
  join(input.dir, '.rootfs.tar'),
  '-',
];

const MARK = 'NEXUS_ROOTFS_WORK';

const failure = (input: RootfsDownload, { stdout, stderr }: RunResult): Fault => {
  const missing = /unable to locate package (\S+)/i.exec(stderr)?.[1];
  if (missing !== undefined)
    return new Fault(
      'not_found',
      `Cannot make the root file system: Debian ${input.version} has no package '${plain(missing)}'.`,
    );
  return aptFault(`make the root file system of Debian ${input.version}`, plainLines(stderr || stdout));
};

const plainLines = (text: string): string => text.split('\n').map(plain).join('\n');

/** fakeroot's daemon has a session of its own and outlives a group that is killed: what was started is found by a mark. */
const runMarked = async (work: string, argv: readonly string[], options: RunOptions): Promise<RunResult> => {
  try {
    return await runAny(argv, { ...options, env: { ...options.env, [MARK]: work } });
  } finally {
    for (const left of await procsWithEnv(MARK, work)) await signalProc(left, 'SIGKILL');
  }
};

const mmdebstrap = async (input: RootfsDownload, work: string, found: (typeof RELEASES)[number]): Promise<void> => {
  const apt = await openApt(work, input.signal, input.onLog);
  const sources = await sourcesFor(apt, found.codename);
  const { mode, prefix } = await wayToRoot(input.signal);
  input.onLog(`mmdebstrap, mode ${mode}`);
  const argv = [...prefix, ...argvFor(input, found.codename, mode, await aptTransport(apt))];
  let done = 0;
  const onLine = (line: string) => {
    input.onLog(plain(line));
    const at = line.startsWith('I: ') ? STAGES.findIndex(([words]) => words.test(line)) : -1;
    const stage = STAGES[at]?.[1];
    if (stage === undefined || at < done) return;
    done = at;
    input.onProgress({ stage, done, total: STAGES.length, unit: 'steps' });
  };
  const scratch = mode === 'unshare' ? await makeScratch(input.owner) : undefined;
  try {
    const result = await runMarked(work, argv, {
      input: Buffer.from(sources),
      env: {
        ...process.env,
        LC_ALL: 'C.UTF-8',
        SOURCE_DATE_EPOCH: String(found.epoch),
        TMPDIR: scratch ?? work,
      },
      signal: input.signal,
      timeout_ms: 1_800_000,
      onLine,
    });
    if (result.code !== 0) throw failure(input, result);
  } finally {
    if (scratch !== undefined) await removeScratch(scratch);
  }
};

/** Makes `rootfs.tar` of that Debian release in `dir`; gives the release. Leaves no other file, no process and no mount. */
export const makeDebianTar = async (input: RootfsDownload): Promise<{ version: string; codename: string }> => {
  const found = release(input.version);
  const bad = input.packages.find(name => !/^[a-z0-9][a-z0-9+.-]{1,99}$/.test(name));
  if (bad !== undefined) throw new Fault('invalid', `Cannot add package '${plain(bad)}': that is no package name.`);
  if (!(await exists(KEYRING)))
    throw new Fault('host', "Cannot check Debian's signature: its keyring is not on this host.", {
      hint: 'apt-get install debian-archive-keyring',
    });
  const work = join(input.dir, '.work');
  const temp = join(input.dir, '.rootfs.tar');
  await mkdir(work, { mode: 0o755 });
  try {
    await mmdebstrap(input, work, found);
    await rename(temp, join(input.dir, 'rootfs.tar'));
    return found;
  } catch (error) {
    if (input.signal.aborted) throw input.signal.reason;
    if (error instanceof RunError)
      throw new Fault('host', `Cannot make the root file system: ${error.message}.`, {
        hint: error.errno === 'ENOENT' ? 'apt-get install mmdebstrap' : undefined,
        cause: error,
      });
    throw error;
  } finally {
    await rm(temp, { force: true });
    await removeWork(work);
  }
};

/** The same, with its hash. */
export const downloadDebianRootfs = async (input: RootfsDownload): Promise<RootfsFile> => {
  const { version } = await makeDebianTar(input);
  const path = join(input.dir, 'rootfs.tar');
  const sha256 = await sha256File(path, input.signal);
  return { distro: 'debian', version, arch: hostArch(), sha256, size_bytes: (await stat(path)).size };
};

const hostArch = (): Arch => (process.arch === 'arm64' ? 'aarch64' : 'x86_64');

/** Removes the working folder, never through something that is still mounted in it. */
const removeWork = async (work: string): Promise<void> => {
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  if (mounts.split('\n').some(line => line.split(' ')[4]?.startsWith(`${work}/`)))
    throw new Fault('internal', `Cannot remove ${work}: something is still mounted in it.`);
  await rm(work, { recursive: true, force: true, maxRetries: 3 });
};

/** Hashes the archive again; `unverified` names it if it is not what was recorded. */
export const verifyRootfs = (dir: string, record: Pick<RootfsFile, 'sha256' | 'size_bytes'>): Promise<void> =>
  verifyFile(join(dir, 'rootfs.tar'), record);
