/**
 * An image from an archive: read and check it, put the overlays over it, turn it into ext4.
 *
 * INVARIANTS: nothing of the archive is interpreted by other programs before it was checked. Everything is made inside
 * `<out>.part/` (0700) beside the result and goes away with it; `out` appears whole, synced, or not at all.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, open, statfs, truncate } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { publish, removeTree, sha256File, writeAtomic } from '../lib/files.ts';
import { runAny } from '../lib/proc.ts';
import { formatBytes } from '../lib/size.ts';
import { type Facts, factsOf } from './facts.ts';
import { type Layout, MKE2FS_CONF, mke2fsArgs, planLayout } from './layout.ts';
import { type Merge, planMerge } from './merge.ts';
import { setRest } from './rest.ts';
import { type Scan, scanArchive } from './scan.ts';
import { shown, writeEntry } from './tar.ts';
import { baseEnv, endFaked, findTools } from './tools.ts';
import { fromTree, OWNERS } from './unpacked.ts';
import { type BuildOptions, bytesTaken, type Method, merged, noRoom, step, type Work } from './work.ts';

export interface Built {
  /** Of the file system. */
  sha256: string;
  /** Of all that the bytes of the file system follow from: archive, overlays, defaults, layout, the tools and their versions. */
  inputs_sha256: string;
  size_bytes: number;
  facts: Facts;
  method: Method;
}

/** Goes up with whatever changes the bytes that the same inputs give. */
const FORM = 1;

/** The one attribute that mke2fs takes out of an archive. */
const TAKEN = 'security.capability';

const identityOf = (scan: Scan, merge: Merge, layout: Layout): string => {
  const hash = createHash('sha256').update(`${scan.sha256} ${JSON.stringify([merge.drops, layout])} `);
  for (const entry of merge.added.values()) hash.update(writeEntry(entry));
  return hash.digest('hex');
};

const inputsOf = (work: Work): string =>
  createHash('sha256')
    .update(JSON.stringify([FORM, work.identity, work.method, work.tools.version]))
    .digest('hex');

const fromTar = async (work: Work): Promise<void> => {
  const argv = [work.tools.mke2fs, ...mke2fsArgs(work.layout, work.identity, '-', work.raw)];
  await step(work, argv, { input: merged(work, 'write') });
  await setRest(work, { xattrs: work.scan.xattrs.list.filter(xattr => xattr.name !== TAKEN) });
};

/** A file system that cannot be trusted is not handed out: e2fsck reads all of it; owners are looked at where they can get lost. */
const verify = async (work: Work): Promise<void> => {
  work.options.onProgress?.({ stage: 'check', done: 0, total: null, unit: 'steps' });
  await step(work, [work.tools.e2fsck, '-f', '-n', work.raw], {});
  const own = [...work.scan.tree.nodes].find(([, node]) => node.kind === 'file' && node.uid === 0);
  if (work.method !== 'tree' || own === undefined || /["\\\n]/.test(own[0])) return;
  const stat = await step(work, [work.tools.debugfs, '-R', `stat "/${Buffer.from(own[0], 'latin1')}"`, work.raw], {
    onLine: () => {},
  });
  if (!/^User:\s+0\s/m.test(stat))
    throw new Fault('host', 'Cannot build the image: fakeroot lost the owners of the files.');
};

const create = async (work: Work): Promise<void> => {
  const { scan, tools, options, method } = work;
  const why = scan.needs_tree === undefined ? `mke2fs ${tools.version}` : `because of ${scan.needs_tree}`;
  options.onLog?.(
    `writing ${work.merge.entries} entries into ${formatBytes(work.layout.size_bytes)} of ext4, by ${method} (${why})`,
  );
  await truncate(work.raw, work.layout.size_bytes);
  if (method === 'tar') await fromTar(work);
  else await fromTree(work);
  await verify(work);
};

/** The clock of the build: the newest time in the archive, but none from the future, which e2fsck would complain about. */
const clock = (scan: Scan): string => String(Math.max(1, Math.min(scan.newest_s, Math.floor(Date.now() / 1000))));

/** Reads the archive once. One that is not what it should be is said to be that, whatever else is wrong with it. */
const readArchive = async (handle: Work['handle'], options: BuildOptions): Promise<Scan> => {
  const { archive, archive_sha256: wanted, signal, onProgress } = options;
  const check = (found: string) => {
    if (wanted === undefined || wanted === found) return;
    throw new Fault(
      'unverified',
      `Cannot build the image: ${archive} is not what was downloaded: its SHA-256 is another.`,
      { hint: 'nexusctl rootfs remove, then nexusctl rootfs download' },
    );
  };
  const progress = (done: number, total: number) => onProgress?.({ stage: 'read', done, total, unit: 'bytes' });
  try {
    const scan = await scanArchive(handle, { signal, onProgress: progress });
    check(scan.whole_sha256);
    return scan;
  } catch (error) {
    if (wanted !== undefined && !signal.aborted) check(await sha256File(archive, signal));
    throw error;
  }
};

const plan = (options: BuildOptions, scan: Scan): { merge: Merge; facts: Facts } => {
  const { overlays = [], defaults = () => [], onLog } = options;
  let facts = factsOf(scan);
  const merge = planMerge(scan, overlays, isTheirs => {
    facts = factsOf(scan);
    return defaults(scan, facts, isTheirs);
  });
  onLog?.(`it is ${facts.os}, init ${facts.init}; ${overlays.length} overlays, ${merge.entries} entries in all`);
  for (const path of merge.given_way) onLog?.(`no default for /${shown(path)}: an overlay says what is there`);
  return { merge, facts };
};

const prepare = async (options: BuildOptions, handle: Work['handle'], dir: string): Promise<Work> => {
  const { signal, onLog } = options;
  const tools = await findTools(options.tools ?? {}, dir, signal);
  const scan = await readArchive(handle, options);
  onLog?.(`the archive has ${scan.tree.nodes.size} entries`);
  const { merge, facts } = plan(options, scan);
  const layout = planLayout(merge.blocks, merge.entries, options.size_bytes);
  const method = options.method ?? (tools.reads_tar && scan.needs_tree === undefined ? 'tar' : 'tree');
  const conf = join(dir, 'mke2fs.conf');
  await writeAtomic(conf, MKE2FS_CONF);
  const env = baseEnv(options.tools ?? {}, {
    SOURCE_DATE_EPOCH: clock(scan),
    E2FSPROGS_FAKE_TIME: clock(scan),
    MKE2FS_CONFIG: conf,
  });
  const raw = join(dir, 'disk.raw');
  await (await open(raw, 'wx', 0o600)).close();
  const identity = identityOf(scan, merge, layout);
  const work: Work = { handle, scan, merge, layout, dir, raw, method, tools, facts, identity, env, options };
  const fs = await statfs(dir);
  await options.needRoom?.(bytesTaken(work));
  if (fs.bavail * fs.bsize < bytesTaken(work)) throw await noRoom(work);
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
    await create(work);
    onProgress?.({ stage: 'hash', done: 0, total: work.layout.size_bytes, unit: 'bytes' });
    const sha256 = await sha256File(work.raw, signal);
    signal.throwIfAborted();
    await chmod(work.raw, 0o644);
    await publish(work.raw, out);
    const inputs_sha256 = inputsOf(work);
    return { sha256, inputs_sha256, size_bytes: work.layout.size_bytes, facts: work.facts, method: work.method };
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
