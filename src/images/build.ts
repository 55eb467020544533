/**
 * An image from an archive: read and check it, put the overlays over it, turn it into ext4.
 *
 * INVARIANTS: nothing of the archive is interpreted by other programs before it was checked. Everything is made inside
 * `<out>.part/` (0700) beside the result and goes away with it; `out` appears whole, synced, or not at all.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, open, statfs, truncate } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { JobProgress } from '../api/job.ts';
import { ensureDir, publish, removeTree, sha256File, writeAtomic } from '../lib/files.ts';
import { type RunOptions, runAny } from '../lib/proc.ts';
import { formatBytes } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { type Facts, factsOf } from './facts.ts';
import { type Layout, MKE2FS_CONF, mke2fsArgs, planLayout } from './layout.ts';
import { type Merge, mergedTar, type Overlay, planMerge } from './merge.ts';
import { type Scan, scanArchive } from './scan.ts';
import { baseEnv, endFaked, findTools, findUnpacker, type ToolOptions, type Tools } from './tools.ts';
import type { Node } from './tree.ts';
import { restCommands } from './xattrs.ts';

export interface BuildOptions {
  /** Path of a tar archive, not compressed. */
  archive: string;
  /** SHA-256 that the archive must have; another one is `unverified`. */
  archive_sha256?: string;
  /** Called when the archive has been read: what to lay over it. */
  overlays: readonly Overlay[] | ((scan: Scan, facts: Facts) => readonly Overlay[]);
  /** Path of the result; must not exist. */
  out: string;
  /** Length of the file system; default: content, a fifth, and what ext4 itself needs. */
  size_bytes?: number;
  /** Default: `tar` where mke2fs can and the archive has nothing that it would lose, else `tree`. */
  method?: 'tree';
  signal: AbortSignal;
  onProgress?: (progress: JobProgress) => void;
  onLog?: (line: string) => void;
  tools?: ToolOptions;
}

export interface Built {
  sha256: string;
  size_bytes: number;
  facts: Facts;
  /** `tar`: mke2fs read the archive itself. `tree`: through a private directory. */
  method: 'tar' | 'tree';
}

interface Work {
  handle: Awaited<ReturnType<typeof open>>;
  scan: Scan;
  merge: Merge;
  layout: Layout;
  dir: string;
  raw: string;
  tools: Tools;
  /** Environment with the clock of the archive. */
  env: NodeJS.ProcessEnv;
  options: BuildOptions;
}

const HOUR_MS = 3_600_000;
/** Where fakeroot keeps owners and devices between two steps. */
const OWNERS = 'owners';

const identityOf = (scan: Scan, merge: Merge, layout: Layout): string =>
  createHash('sha256')
    .update(`${scan.sha256} ${JSON.stringify([merge.drops, layout])} `)
    .update(merge.tail)
    .digest('hex');

/** Runs a step; its last words become the fault. */
const step = async (work: Work, argv: string[], options: RunOptions): Promise<string> => {
  const { onLog, signal } = work.options;
  const onLine = (line: string) => line.trim() !== '' && onLog?.(plain(line));
  const result = await runAny(argv, { timeout_ms: HOUR_MS, env: work.env, signal, onLine, ...options });
  if (result.code === 0) return result.stdout;
  const words = plain(result.stderr.trim().split('\n').slice(-2).join(' / ')).slice(-300);
  if (/No space left on device|Disk quota exceeded/.test(result.stderr)) throw await noRoom(work);
  if (/Could not allocate|No free space|not enough space/i.test(result.stderr))
    throw new Fault(
      'invalid',
      `Cannot build the image: its content does not fit into ${formatBytes(work.layout.size_bytes)}.`,
      {
        hint: `--size-bytes ${work.layout.size_bytes * 2}`,
      },
    );
  throw new Fault(
    'host',
    `Cannot build the image: ${argv[0]} failed with ${result.signal ?? `exit code ${result.code}`}: ${words}.`,
  );
};

const noRoom = async (work: Work): Promise<Fault> => {
  const fs = await statfs(work.dir);
  const needed = work.merge.blocks * 4096 + 16 * 1024 * 1024;
  return new Fault(
    'no_room',
    `Cannot build the image: it needs about ${formatBytes(needed)}, ${dirname(work.options.out)} has ${formatBytes(fs.bavail * fs.bsize)} free.`,
  );
};

/** The merged archive as the standard input of a step, which is closed whatever happens. */
const feed = async <T>(work: Work, stage: string, use: (input: Readable) => Promise<T>): Promise<T> => {
  const { signal, onProgress } = work.options;
  const input = Readable.from(
    mergedTar(work.handle, work.scan, work.merge, {
      signal,
      onProgress: (done, total) => onProgress?.({ stage, done, total, unit: 'bytes' }),
    }),
    { objectMode: false, highWaterMark: 1024 * 1024 },
  );
  try {
    return await use(input);
  } finally {
    input.destroy();
  }
};

const fromTar = (work: Work): Promise<string> =>
  feed(work, 'write', input =>
    step(
      work,
      [work.tools.mke2fs, ...mke2fsArgs(work.layout, identityOf(work.scan, work.merge, work.layout), '-', work.raw)],
      { input },
    ),
  );

/** GNU tar into a directory, then mke2fs. fakeroot carries owners and devices from the one to the other in a file. */
const fromTree = async (work: Work): Promise<void> => {
  const { tar, fakeroot } = await findUnpacker();
  const tree = await ensureDir(join(work.dir, 'tree'), 0o700);
  const state = join(work.dir, OWNERS);
  // The file is named in each step: it tells our fakeroot's daemon from others.
  const under = (...flags: string[]) => (fakeroot === undefined ? [] : [fakeroot, ...flags, '-s', state, '--']);
  if (work.scan.acls && fakeroot !== undefined)
    throw new Fault(
      'unsupported',
      'Cannot build the image: the archive has access control lists, which only root can set.',
    );
  const keep = ['--same-owner', '--numeric-owner', '--same-permissions'];
  if (work.scan.acls) keep.push('--acls');
  await feed(work, 'unpack', input =>
    step(work, [...under(), tar, '-x', ...keep, '--delay-directory-restore', '-C', tree, '-f', '-'], { input }),
  );
  // A file that its owner may not read is closed to mke2fs too, for fakeroot cannot open it: it gets its mode in the end.
  const closed = [...work.scan.tree.nodes].filter(([, node]) => node.kind === 'file' && (node.mode & 0o400) === 0);
  const opened = fakeroot === undefined ? [] : closed;
  for (const [path] of opened)
    await chmod(Buffer.concat([Buffer.from(`${tree}/`), Buffer.from(path, 'latin1')]), 0o600);
  work.options.onProgress?.({ stage: 'write', done: 0, total: null, unit: 'bytes' });
  const identity = identityOf(work.scan, work.merge, work.layout);
  await step(
    work,
    [...under('-i', state), work.tools.mke2fs, ...mke2fsArgs(work.layout, identity, tree, work.raw)],
    {},
  );
  await setRest(work, opened);
};

/** Sets in the finished file system what the directory could not carry. */
const setRest = async (work: Work, closed: readonly (readonly [string, Node])[]): Promise<void> => {
  const { tree, xattrs } = work.scan;
  const list = xattrs.list.filter(({ path }) => tree.nodes.get(path)?.range !== undefined); // an overlay has none
  const commands = await restCommands(work.dir, tree.nodes.get(''), list, closed);
  const said: string[] = [];
  const onLine = (line: string, channel: string) => channel === 'stderr' && said.push(plain(line));
  await step(work, [work.tools.debugfs, '-w', '-f', commands, work.raw], { onLine });
  // debugfs ends with 0 whatever its commands did; it greets on the same channel.
  const wrong = said.find(line => line.trim() !== '' && !/^debugfs \d/.test(line));
  if (wrong !== undefined)
    throw new Fault('host', `Cannot build the image: extended attributes could not be set: ${wrong}.`);
};

/** A file system that cannot be trusted is not handed out: e2fsck reads all of it; owners are looked at where they can get lost. */
const verify = async (work: Work, method: Built['method']): Promise<void> => {
  work.options.onProgress?.({ stage: 'check', done: 0, total: null, unit: 'steps' });
  await step(work, [work.tools.e2fsck, '-f', '-n', work.raw], {});
  const own = [...work.scan.tree.nodes].find(([, node]) => node.kind === 'file' && node.uid === 0);
  if (method !== 'tree' || own === undefined || /["\\\n]/.test(own[0])) return;
  const stat = await step(work, [work.tools.debugfs, '-R', `stat "/${Buffer.from(own[0], 'latin1')}"`, work.raw], {
    onLine: () => {},
  });
  if (!/^User:\s+0\s/m.test(stat))
    throw new Fault('host', 'Cannot build the image: fakeroot lost the owners of the files.');
};

const create = async (work: Work): Promise<Built['method']> => {
  const { scan, tools, options } = work;
  const method = options.method ?? (tools.reads_tar && scan.needs_tree === undefined ? 'tar' : 'tree');
  const why = scan.needs_tree === undefined ? `mke2fs ${tools.version}` : `because of ${scan.needs_tree}`;
  options.onLog?.(
    `writing ${work.merge.entries} entries into ${formatBytes(work.layout.size_bytes)} of ext4, by ${method} (${why})`,
  );
  await truncate(work.raw, work.layout.size_bytes);
  if (method === 'tar') await fromTar(work);
  else await fromTree(work);
  await verify(work, method);
  return method;
};

/** The clock of the build: the newest time in the archive, but none from the future, which e2fsck would complain about. */
const clock = (scan: Scan): string => String(Math.max(1, Math.min(scan.newest_s, Math.floor(Date.now() / 1000))));

const checkArchive = async ({ archive, archive_sha256, signal }: BuildOptions): Promise<void> => {
  if (archive_sha256 === undefined || archive_sha256 === (await sha256File(archive, signal))) return;
  throw new Fault(
    'unverified',
    `Cannot build the image: ${archive} is not what was downloaded: its SHA-256 is another.`,
    { hint: 'nexusctl rootfs remove, then nexusctl rootfs download' },
  );
};

const prepare = async (options: BuildOptions, handle: Work['handle'], dir: string): Promise<Work> => {
  const { signal, onProgress, onLog } = options;
  const tools = await findTools(options.tools ?? {}, dir, signal);
  await checkArchive(options);
  const scan = await scanArchive(handle, {
    signal,
    onProgress: (done, total) => onProgress?.({ stage: 'read', done, total, unit: 'bytes' }),
  });
  const facts = factsOf(scan);
  onLog?.(`the archive has ${facts.os}, init ${facts.init}, ${scan.tree.nodes.size} entries`);
  const overlays = typeof options.overlays === 'function' ? options.overlays(scan, facts) : options.overlays;
  const merge = planMerge(scan, overlays);
  const layout = planLayout(merge.blocks, merge.entries, options.size_bytes);
  const conf = join(dir, 'mke2fs.conf');
  await writeAtomic(conf, MKE2FS_CONF);
  const env = baseEnv(options.tools ?? {}, {
    SOURCE_DATE_EPOCH: clock(scan),
    E2FSPROGS_FAKE_TIME: clock(scan),
    MKE2FS_CONFIG: conf,
  });
  const raw = join(dir, 'disk.raw');
  await (await open(raw, 'wx', 0o600)).close();
  const work: Work = { handle, scan, merge, layout, dir, raw, tools, env, options };
  const fs = await statfs(dir);
  if (fs.bavail * fs.bsize < merge.blocks * 4096) throw await noRoom(work);
  return work;
};

/** Builds an image file. Cancelled or failed, it leaves nothing. */
export const buildExt4 = async (options: BuildOptions): Promise<Built> => {
  const { out, signal, onProgress } = options;
  const parent = dirname(out);
  const dir = `${out}.part`;
  await using handle = await open(options.archive, 'r').catch((cause: NodeJS.ErrnoException) => {
    throw new Fault('invalid', `Cannot read the archive ${options.archive}: ${cause.code}.`, { cause });
  });
  await removeTree(parent, dir); // of a builder that was killed
  await mkdir(dir, { mode: 0o700 });
  try {
    const work = await prepare(options, handle, dir);
    const method = await create(work);
    onProgress?.({ stage: 'hash', done: 0, total: work.layout.size_bytes, unit: 'bytes' });
    const sha256 = await sha256File(work.raw, signal);
    signal.throwIfAborted();
    await chmod(work.raw, 0o644);
    await publish(work.raw, out);
    return { sha256, size_bytes: work.layout.size_bytes, facts: factsOf(work.scan), method };
  } catch (cause) {
    signal.throwIfAborted(); // with the caller's reason, whatever the step made of it
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOSPC')
      throw new Fault('no_room', `Cannot build the image: ${parent} is full.`, { cause });
    throw cause;
  } finally {
    await endFaked(join(dir, OWNERS));
    await remove(parent, dir);
  }
};

/** Directories without write permission (mode 0555) stop an ordinary user's removal; they are opened first. */
const remove = async (root: string, dir: string): Promise<void> => {
  await removeTree(root, dir).catch(async () => {
    await runAny(['chmod', '-R', 'u+rwX', dir]);
    await removeTree(root, dir);
  });
};
