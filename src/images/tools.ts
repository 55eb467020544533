/** The programs that make a file system, and what they can do. */
import { access, constants, readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import { poll } from '../lib/deadline.ts';
import { isAlive, procRef, RunError, run, runAny, signalProc } from '../lib/proc.ts';
import { endOfArchive, writeEntry } from './tar.ts';

export interface ToolOptions {
  /** Path of mke2fs; default: $NEXUS_MKE2FS, then PATH and the system's directories. */
  mke2fs?: string;
  /** Added to the environment of all programs: a brought mke2fs may need LD_LIBRARY_PATH. */
  env?: Record<string, string>;
}

export interface Tools {
  mke2fs: string;
  /** e2fsck and debugfs that belong to it. */
  e2fsck: string;
  debugfs: string;
  version: string;
  /** It reads a tar archive from its standard input and keeps what is in it. */
  reads_tar: boolean;
  env: NodeJS.ProcessEnv;
}

const SYSTEM = ['/usr/local/sbin', '/usr/sbin', '/sbin'];
const searchPath = (): string =>
  [...new Set([...(process.env.PATH ?? '/usr/bin:/bin').split(':'), ...SYSTEM])].join(':');

const find = async (name: string, dirs: string[]): Promise<string | undefined> => {
  for (const dir of dirs) {
    const path = join(dir, name);
    if (
      await access(path, constants.X_OK).then(
        () => true,
        () => false,
      )
    )
      return path;
  }
  return undefined;
};

/** 1.47.1 was the first to read tar; it lost what 1.47.2 keeps. */
const newEnough = (version: string): boolean => {
  const [a = 0, b = 0, c = 0] = version.split('.').map(Number);
  return a * 1e6 + b * 1e3 + c >= 1_047_002;
};

/** Makes a file system of 1 MiB from an archive with one directory: libarchive is loaded only then, and may be missing. */
const readsTar = async (mke2fs: string, env: NodeJS.ProcessEnv, dir: string, signal: AbortSignal): Promise<boolean> => {
  const entry = writeEntry({ path: 'dir', type: 'dir', mode: 0o755, uid: 1, gid: 1, mtime: 1 });
  const input = Readable.from([entry, endOfArchive()]);
  const argv = [mke2fs, '-q', '-F', '-t', 'ext4', '-d', '-', join(dir, 'trial.raw'), '1M'];
  return (await runAny(argv, { env, input, signal })).code === 0;
};

export const baseEnv = (options: ToolOptions, more: Record<string, string> = {}): NodeJS.ProcessEnv => ({
  PATH: searchPath(),
  // libarchive converts names to the locale's character set; messages are read below.
  LC_ALL: 'C.UTF-8',
  TZ: 'UTC',
  ...more,
  ...options.env,
});

/** Finds mke2fs and its kin. `dir` takes a small trial file. */
export const findTools = async (options: ToolOptions, dir: string, signal: AbortSignal): Promise<Tools> => {
  const env = baseEnv(options);
  const dirs = searchPath().split(':');
  const mke2fs = options.mke2fs ?? (process.env.NEXUS_MKE2FS || (await find('mke2fs', dirs)));
  const hint = 'apt-get install e2fsprogs';
  if (mke2fs === undefined) throw new Fault('host', 'Cannot build an image: mke2fs is not installed.', { hint });
  const asked = await run([mke2fs, '-V'], { env, signal }).catch((cause: unknown) => {
    if (!(cause instanceof RunError)) throw cause;
    throw new Fault('host', `Cannot build an image: ${cause.message}.`, { hint, cause });
  });
  const version = /mke2fs (\d+(?:\.\d+)*)/.exec(asked.stderr + asked.stdout)?.[1] ?? '0';
  const near = [dirname(mke2fs), ...dirs];
  const [e2fsck, debugfs] = [await find('e2fsck', near), await find('debugfs', near)];
  if (e2fsck === undefined || debugfs === undefined)
    throw new Fault('host', 'Cannot build an image: e2fsck or debugfs is not installed.', { hint });
  const reads_tar = newEnough(version) && (await readsTar(mke2fs, env, dir, signal));
  return { mke2fs, e2fsck, debugfs, version, reads_tar, env };
};

/** What unpacks into a directory keeping owners: GNU tar as root; for others under fakeroot. */
export const findUnpacker = async (): Promise<{ tar: string; fakeroot: string | undefined }> => {
  const dirs = searchPath().split(':');
  const tar = await find('tar', dirs);
  const fakeroot = process.getuid?.() === 0 ? undefined : await find('fakeroot', dirs);
  if (tar !== undefined && (fakeroot !== undefined || process.getuid?.() === 0)) return { tar, fakeroot };
  const missing = tar === undefined ? 'tar' : 'fakeroot';
  throw new Fault('host', `Cannot build an image: ${missing} is not installed, and mke2fs is older than 1.47.2.`, {
    hint: `apt-get install ${missing}`,
  });
};

/**
 * Ends the daemon that a cut-off fakeroot leaves behind: it is in a session of its own, and only the script, which a signal ends
 * without a word, would have stopped it.
 */
export const endFaked = async (state: string): Promise<void> => {
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const args = (await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')).split('\0');
    if (!/faked/.test(args[0] ?? '') || !args.includes(state)) continue;
    const ref = await procRef(Number(name));
    if (ref === undefined) continue;
    await signalProc(ref, 'SIGKILL');
    await poll('the end of faked', 5000, async () => ((await isAlive(ref)) ? undefined : true));
  }
};
