/**
 * The machine's own apt, with its own signature checks and nothing of the system touched: caches, and where the system's lists
 * do not do, lists too are in a private folder. Works as an ordinary user: the system's lists are readable for all.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ensureDir, writeAtomic } from '../lib/files.ts';
import { RunError, type RunOptions, type RunResult, runAny } from '../lib/proc.ts';

export interface Apt {
  /** Private, in which apt may write. */
  dir: string;
  /** `private` once the lists were fetched anew. */
  lists: 'system' | 'private';
  signal: AbortSignal;
  onLog: (line: string) => void;
}

export interface AptPackage {
  name: string;
  version: string;
  size_bytes: number;
  /** Of the .deb, from the signed index. */
  sha256: string;
}

/** Hooks of the system that would clean or change what is not ours. */
const CONF = ['APT::Update::Post-Invoke', 'APT::Update::Post-Invoke-Success', 'APT::Update::Pre-Invoke']
  .map(name => `#clear ${name};\n`)
  .join('');

const options = (apt: Apt): string[] => {
  const set: [string, string][] = [
    ['Dir::Cache', join(apt.dir, 'cache')],
    ['Dir::Cache::pkgcache', 'pkgcache.bin'],
    ['Dir::Cache::srcpkgcache', 'srcpkgcache.bin'],
    ...(apt.lists === 'private' ? [['Dir::State::Lists', join(apt.dir, 'lists')] as [string, string]] : []),
    // As root apt would become _apt, who cannot reach a private folder, and would then warn and go on as root.
    ...(process.getuid?.() === 0 ? [['APT::Sandbox::User', 'root'] as [string, string]] : []),
    ['APT::Get::AllowUnauthenticated', 'false'],
    ['Acquire::AllowInsecureRepositories', 'false'],
    ['Acquire::AllowWeakRepositories', 'false'],
    ['Acquire::AllowDowngradeToInsecureRepositories', 'false'],
    ['Acquire::Languages', 'none'],
    ['Acquire::Retries', '3'],
  ];
  return ['-q', '-c', join(apt.dir, 'apt.conf'), ...set.flatMap(([name, value]) => ['-o', `${name}=${value}`])];
};

/** Makes the folders that apt wants in `dir`. */
export const openApt = async (dir: string, signal: AbortSignal, onLog: (line: string) => void): Promise<Apt> => {
  for (const folder of ['cache/archives/partial', 'lists/partial']) await ensureDir(join(dir, folder), 0o700);
  await writeAtomic(join(dir, 'apt.conf'), CONF);
  return { dir, lists: 'system', signal, onLog };
};

export const NO_APT =
  'Nexus takes this from the signed packages of Debian and needs a host with apt (Debian or Ubuntu)';

const call = async (apt: Apt, argv: string[], more: RunOptions = {}): Promise<RunResult> => {
  const [program = '', ...args] = argv;
  try {
    return await runAny([program, ...options(apt), ...args], {
      cwd: apt.dir,
      env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
      signal: apt.signal,
      timeout_ms: 120_000,
      max_output: 16 * 1024 * 1024,
      ...more,
    });
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    if (error.errno === 'ENOENT')
      throw new Fault('host', `Cannot use apt: ${program} is not installed.`, { hint: NO_APT, cause: error });
    throw new Fault('host', `Cannot use apt: ${error.message}.`, { cause: error });
  }
};

/** What apt itself says about its failure, in one line. */
export const aptWords = (output: string): string => {
  const lines = output.split('\n').map(l => l.trim());
  const errors = lines.filter(l => l.startsWith('E: ')).map(l => l.slice(3));
  const words = errors.length > 0 ? errors : lines.filter(l => l.startsWith('W: ')).map(l => l.slice(3));
  return (words.join(' ') || lines.slice(-3).join(' ')).slice(0, 600);
};

const UNVERIFIED =
  /hash sum mismatch|unauthenticated|cannot be authenticated|is not signed|does not have a release file|no_pubkey|badsig|expkeysig|gpg error|file has unexpected size|invalid signature|OpenPGP signature verification failed/i;

/** The fault that apt's words mean. */
export const aptFault = (what: string, output: string): Fault => {
  const words = aptWords(output);
  const text = `Cannot ${what}: apt says: ${words.replace(/\.$/, '')}.`;
  if (UNVERIFIED.test(output)) return new Fault('unverified', text);
  if (/no space left/i.test(output)) return new Fault('no_room', text);
  return new Fault('host', text, { hint: 'See that `apt-get update` works on this host.' });
};

/** Fetches the lists of the system's sources into the private folder; from then on they are the ones in use. */
export const refreshLists = async (apt: Apt): Promise<Apt> => {
  const fresh: Apt = { ...apt, lists: 'private' };
  const { code, stdout, stderr } = await call(fresh, ['apt-get', 'update'], {
    timeout_ms: 300_000,
    onLine: line => apt.onLog(line),
  });
  // A source that fails is a warning: the lists of the others are there. Without any list it is an error.
  const lists = (await readdir(join(apt.dir, 'lists'))).filter(name => name.includes('_Packages'));
  if (code !== 0 && lists.length === 0) throw aptFault('fetch the package lists', stdout + stderr);
  if (lists.length === 0) throw aptFault('fetch the package lists', `${stdout}${stderr}\nE: no package list was found`);
  return fresh;
};

/** Names of known packages that begin so. Some may have no version that can be had. */
export const packageNames = async (apt: Apt, prefix: string): Promise<string[]> => {
  const { code, stdout, stderr } = await call(apt, ['apt-cache', 'pkgnames', prefix]);
  if (code !== 0) throw aptFault('list the packages', stderr);
  return stdout.split('\n').filter(name => name !== '');
};

/** The candidate of a package, from the index; undefined if there is none. */
export const candidate = async (apt: Apt, name: string): Promise<AptPackage | undefined> => {
  const { code, stdout } = await call(apt, ['apt-cache', 'show', '--no-all-versions', '--', name]);
  if (code !== 0) return undefined;
  const field = (key: string) => new RegExp(`^${key}: (.+)$`, 'm').exec(stdout)?.[1];
  const [found, version, size, sha256] = ['Package', 'Version', 'Size', 'SHA256'].map(field);
  if (found !== name || version === undefined || size === undefined || !/^[0-9a-f]{64}$/.test(sha256 ?? ''))
    return undefined;
  return { name, version, size_bytes: Number(size), sha256: sha256 ?? '' };
};

/** The one .deb in the private folder, and its size so far. */
const debFile = async (apt: Apt): Promise<{ path: string; size_bytes: number } | undefined> => {
  const name = (await readdir(apt.dir)).find(f => f.endsWith('.deb'));
  if (name === undefined) return undefined;
  const path = join(apt.dir, name);
  return { path, size_bytes: (await stat(path)).size };
};

/** Downloads a package; apt checks its hash against the signed index. Undefined if the lists are stale (the file is gone). */
export const downloadPackage = async (
  apt: Apt,
  pkg: AptPackage,
  onBytes: (done: number) => void,
): Promise<string | undefined> => {
  const watch = setInterval(() => {
    debFile(apt).then(
      file => file && onBytes(file.size_bytes),
      () => {},
    );
  }, 250);
  try {
    const argv = ['apt-get', 'download', '--', `${pkg.name}=${pkg.version}`];
    const { code, stdout, stderr } = await call(apt, argv, { timeout_ms: 900_000, onLine: l => apt.onLog(l) });
    const file = await debFile(apt);
    if (code === 0 && file !== undefined) return file.path;
    if (!UNVERIFIED.test(stderr) && /\b404\b|not found|unable to locate|can't find a source/i.test(stderr))
      return undefined;
    throw aptFault(`download ${pkg.name}`, stdout + stderr);
  } finally {
    clearInterval(watch);
  }
};

export interface AptSource {
  uri: string;
  /** Code name of the suite, from its signed release file: bookworm, bookworm-security. */
  codename: string;
  origin: string;
}

/** The machine's package sources with a component `main` whose lists are there and whose signature apt accepted. */
export const aptSources = async (apt: Apt): Promise<AptSource[]> => {
  const format = '$(CREATED_BY)|$(COMPONENT)|$(TRUSTED)|$(CODENAME)|$(ORIGIN)|$(REPO_URI)';
  const { code, stdout, stderr } = await call(apt, ['apt-get', 'indextargets', '--format', format]);
  if (code !== 0) throw aptFault('read the package sources', stderr);
  const lines = [...new Set(stdout.split('\n'))].map(line => line.split('|'));
  return lines.flatMap(([by, component, trusted, codename = '', origin = '', ...uri]) =>
    by === 'Packages' && component === 'main' && trusted === 'yes' ? [{ uri: uri.join('|'), codename, origin }] : [],
  );
};

/** The machine's own settings of how apt reaches its sources (proxies and the like), as `name=value`. */
export const aptTransport = async (apt: Apt): Promise<string[]> => {
  const { stdout } = await call(apt, ['apt-config', 'dump', '--format', '%F=%v%n']);
  return stdout
    .split('\n')
    .filter(
      line => /^Acquire::(https?::|ForceIPv[46]=|Check-Valid-Until=|Check-Date=)/.test(line) && !line.endsWith('='),
    );
};
