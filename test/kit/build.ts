/** Images built by a test: in its own process, and in one of an ordinary user. */
import { chmod, chown, copyFile, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import type { InitMode } from '../../src/api/image.ts';
import { type Built, buildExt4 } from '../../src/images/build.ts';
import type { GuestOptions } from '../../src/images/overlays.ts';
import type { BuildOptions } from '../../src/images/work.ts';
import { run, runAny } from '../../src/lib/proc.ts';

const REPO = join(import.meta.dirname, '../..');
/** Where the programs of e2fsprogs are, for an ordinary user too. */
export const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8' };

/** A mke2fs that reads archives: the one that is named, else one that is brought as the start script does it. */
export const newMke2fs = async (): Promise<string | undefined> => {
  if (process.env.NEXUS_MKE2FS) return process.env.NEXUS_MKE2FS;
  const place = join(REPO, '.cache/e2fsprogs');
  const brought = await runAny([join(REPO, 'packaging/e2fsprogs.sh'), place], { timeout_ms: 120_000 });
  return brought.code === 0 ? join(place, 'mke2fs') : undefined;
};

/** What makes an archive a guest. */
export interface Guest extends Omit<GuestOptions, 'agent' | 'init'> {
  /** Default: that of the archive. */
  init?: InitMode;
  /** Path of the agent. */
  agent: string;
  size_bytes: number;
}

export type ByUser = Built & { out: string; left: string[] };

export interface Bench {
  dir: string;
  /** Why nothing can be built by tar here. */
  no_newer: string | false;
  /** Builds with that mke2fs, if there is one, into a file of its own. */
  build(options: Partial<BuildOptions> & { archive: string }): Promise<Built & { out: string; lines: string[] }>;
  /** Gives the path of a new archive. */
  put(bytes: Buffer): Promise<string>;
  fsck(raw: string): Promise<unknown>;
  /** The same for that archive in a process of user 1000, in folders of its own; or why that cannot be. */
  asUser(archive: string, method: Built['method']): Promise<ByUser | string>;
  /** A guest of that archive, built by that user, or by who runs this if that is an ordinary one. */
  guestAsUser(archive: string, guest: Guest): Promise<ByUser>;
}

const SCRIPT = `import { readdir, readFile } from 'node:fs/promises';
import { buildExt4 } from './src/images/build.ts';
import { guestOverlays } from './src/images/overlays.ts';
const [, , archive, dir, method, mke2fs, given] = process.argv;
const more = { ...(method === 'tree' ? { method } : {}), ...(mke2fs ? { tools: { mke2fs } } : {}) };
const out = dir + '/' + method + '.raw';
const guest = given && JSON.parse(given);
if (guest) {
  const agent = await readFile(guest.agent);
  more.size_bytes = guest.size_bytes;
  more.defaults = (scan, facts) => guestOverlays(scan, facts, { ...guest, init: guest.init ?? facts.init, agent });
}
const built = await buildExt4({ archive, out, signal: new AbortController().signal, ...more });
console.log(JSON.stringify({ ...built, out, left: (await readdir(dir)).filter(name => !name.endsWith('.raw')) }));
`;

/** A copy of the builder: the checkout may be closed to others. */
const userPlace = async (dir: string, other: boolean): Promise<void> => {
  await chmod(dir, 0o755);
  for (const part of ['src/images', 'src/lib', 'src/api', 'node_modules/zod'])
    await cp(join(REPO, part), join(dir, part), { recursive: true });
  await writeFile(join(dir, 'package.json'), '{"type":"module"}');
  await writeFile(join(dir, 'user.ts'), SCRIPT);
  await mkdir(join(dir, 'mine'));
  if (other) await chown(join(dir, 'mine'), 1000, 1000);
};

/** Folders of the file's tests, removed after them. */
export const bench = async (): Promise<Bench> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-ext4-'));
  const user = await mkdtemp(join(tmpdir(), 'nexus-ext4-user-'));
  after(() => Promise.all([dir, user].map(path => rm(path, { recursive: true, force: true }))));
  const newer = await newMke2fs();
  let count = 0;
  let placed: Promise<void> | undefined;
  const root = process.getuid?.() === 0;
  const other = root ? ['setpriv', '--reuid', '1000', '--regid', '1000', '--clear-groups'] : [];
  const as = (argv: string[]) => runAny([...other, ...argv], { cwd: user, timeout_ms: 600_000 });
  /** The mke2fs that reads archives, if that user may run it. */
  const theirs = async () => (newer !== undefined && (await as([newer, '-V'])).code === 0 ? newer : undefined);
  const byUser = async (archive: string, method: Built['method'], mke2fs = '', guest?: Guest): Promise<ByUser> => {
    placed ??= userPlace(user, root);
    await placed;
    const [copy, agent] = [join(user, 'in.tar'), join(user, 'agent')];
    await copyFile(archive, copy);
    if (guest !== undefined) await copyFile(guest.agent, agent);
    await rm(join(user, 'mine', `${method}.raw`), { force: true });
    const more = guest === undefined ? [] : [JSON.stringify({ ...guest, agent })];
    const argv = [process.execPath, join(user, 'user.ts'), copy, join(user, 'mine'), method, mke2fs, ...more];
    const made = await as(argv);
    if (made.code !== 0) throw new Error(`as an ordinary user: ${made.stderr}`);
    return JSON.parse(made.stdout);
  };
  return {
    dir,
    no_newer: newer === undefined && 'no mke2fs of 1.47.2 or newer can be had',
    build: async options => {
      const lines: string[] = [];
      const given = { out: join(dir, `${count++}.raw`), ...options };
      const tools = newer === undefined ? {} : { tools: { mke2fs: newer } };
      const signal = AbortSignal.timeout(600_000);
      const built = await buildExt4({ signal, onLog: line => lines.push(line), ...tools, ...given });
      return { ...built, out: given.out, lines };
    },
    put: async bytes => {
      const path = join(dir, `${count++}.tar`);
      await writeFile(path, bytes);
      return path;
    },
    fsck: raw => run(['e2fsck', '-f', '-n', raw], { env, timeout_ms: 600_000 }),
    asUser: async (archive, method) => {
      if (!root) return 'this run is an ordinary user already';
      const mke2fs = await theirs();
      if (mke2fs === undefined && method === 'tar') return 'no mke2fs of 1.47.2 that another user may run';
      return byUser(archive, method, mke2fs);
    },
    guestAsUser: async (archive, guest) => {
      const mke2fs = await theirs();
      return byUser(archive, mke2fs === undefined ? 'tree' : 'tar', mke2fs, guest);
    },
  };
};
