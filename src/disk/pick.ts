/** Finds out, by trying, what the file system of a data directory can do. */
import { mkdtemp, rename, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ensureDir, exists, removeTree } from '../lib/files.ts';
import type { Log } from '../lib/log.ts';
import { plainStep, type Step } from '../lib/step.ts';
import { type Disks, FileDisks } from './disk.ts';
import { btrfsWay, copyWay, reflink, reflinkWay, type Way } from './ways.ts';

/** statfs(2): f_type of btrfs. */
const BTRFS_MAGIC = 0x9123683e;
const PROBE_MS = 10_000;

const words = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0] ?? '';

/** The whole life of a subvolume: create, write, snapshot, rename, remove. Undefined if all went well, else why not. */
const tryBtrfs = async (data_dir: string, dir: string): Promise<string | undefined> => {
  if ((await statfs(data_dir)).type !== BTRFS_MAGIC) return 'the data directory is not on btrfs';
  const signal = AbortSignal.timeout(PROBE_MS);
  const way = btrfsWay('');
  try {
    await way.folder(join(dir, 'a'), signal);
    await writeFile(join(dir, 'a', 'disk.raw'), 'x');
    await way.clone(join(dir, 'a', 'disk.raw'), join(dir, 'b'), signal);
    await rename(join(dir, 'b'), join(dir, 'c'));
    for (const name of ['a', 'c']) await removeTree(data_dir, join(dir, name));
    return (await exists(join(dir, 'c'))) ? 'subvolumes cannot be removed' : undefined;
  } catch (error) {
    return `subvolumes cannot be used (${words(error)})`;
  }
};

const tryReflink = async (dir: string): Promise<string | undefined> => {
  try {
    // More than a btrfs leaf keeps inline: inline data is copied, not shared.
    await writeFile(join(dir, 'from'), Buffer.alloc(65_536, 1));
    return (await reflink(join(dir, 'from'), join(dir, 'to')))
      ? undefined
      : 'its file system cannot share blocks between files';
  } catch (error) {
    return `sharing blocks between files failed (${words(error)})`;
  }
};

const pickWay = async (data_dir: string, dir: string): Promise<Way> => {
  const no_btrfs = await tryBtrfs(data_dir, dir);
  if (no_btrfs === undefined) return btrfsWay('the data directory is on btrfs');
  const no_reflink = await tryReflink(dir);
  if (no_reflink === undefined) return reflinkWay(`files can share blocks; ${no_btrfs}`);
  return copyWay(`${no_btrfs}; ${no_reflink}`);
};

/** Picks the best backend that works in this data directory. */
export const pickDisks = async (
  data_dir: string,
  log: Log,
  { step = plainStep, probe = 'nexus-probe' }: { step?: Step; probe?: string } = {},
): Promise<Disks> => {
  await ensureDir(data_dir);
  const dir = await mkdtemp(join(data_dir, '.probe-'));
  try {
    const way = await pickWay(data_dir, dir);
    log.info({ backend: way.backend, why: way.why }, 'disks');
    return new FileDisks(data_dir, way, step, probe);
  } finally {
    await removeTree(data_dir, dir);
  }
};
