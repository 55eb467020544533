/**
 * Folders in a data directory that no record accounts for: work failed, and so did its clearing up.
 *
 * INVARIANTS: names are listed before records are asked for, and IDs are never used twice: what is made meanwhile is not among them.
 * What an operation is making has no record yet: a disk's ID is in use then, files of jobs lie there only while a job runs.
 */
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { ID_PATTERN } from '../api/common.ts';
import { removeTree } from '../lib/files.ts';
import type { Host } from './host.ts';
import { vmDir } from './paths.ts';

export interface Found {
  /** Below the data directory. */
  name: string;
  bytes: number;
  why: string;
  remove(): Promise<void>;
}

const LEFT = 'left by work that failed';
/** Also one that was made after the copy of the state that was put back. */
const UNKNOWN = 'a disk that no record knows';

export const findLeftovers = async (host: Host): Promise<Found[]> => [...(await disks(host)), ...(await folders(host))];

/** What is on its way to a record; a removal is on its way from one, and does no harm beside ours. */
const idIn = (name: string): string => /[a-z]+_[0-9a-z]{26}/.exec(name)?.[0] ?? '';

const disks = async (host: Host): Promise<Found[]> => {
  const listed = await host.disks.leftovers({ images: new Set(), workspaces: new Set() });
  const free = listed.filter(one => host.uses.isFree(idIn(one.name)));
  const [images, workspaces] = [await host.store.listImages(), await host.store.listWs()];
  const known = new Set([...images, ...workspaces].map(one => one.id));
  return free
    .filter(one => !known.has(idIn(one.name)) || one.name.endsWith('.part'))
    .map(one => ({
      name: one.name,
      why: one.name.endsWith('.part') ? LEFT : UNKNOWN,
      bytes: one.used_bytes,
      remove: () => host.disks.removeLeftover(one),
    }));
};

/** Of VMs, of assets, and of jobs that have ended. */
const folders = async (host: Host): Promise<Found[]> => {
  const { paths, store, locks, live } = host;
  const list = async (dir: string) =>
    (await readdir(dir).catch(() => [])).map(name => ({ name, path: join(dir, name) }));
  const kinds = [
    ['kernel', paths.kernels],
    ['rootfs', paths.rootfs],
    ['firecracker', paths.firecrackers],
  ] as const;
  const [vms, tmp, ...assets] = await Promise.all([
    list(paths.vms),
    list(paths.tmp),
    ...kinds.map(([, dir]) => list(dir)),
  ]);
  const stray: string[] = [];
  for (const { name } of vms)
    if (locks.holder(name) === undefined && !live.has(name) && (await store.findVm(name)) === undefined)
      stray.push(vmDir(paths, name));
  const at_work = await Promise.all((['queued', 'running'] as const).map(state => store.listJobs({ state, limit: 1 })));
  if (at_work.flat().length === 0) {
    stray.push(...tmp.filter(one => host.uses.isFree(one.name)).map(one => one.path));
    for (const [i, [kind]] of kinds.entries())
      for (const { name, path } of assets[i] ?? [])
        if (ID_PATTERN.test(name) && host.uses.isFree(name) && (await store.assets[kind].find(name)) === undefined)
          stray.push(path);
  }
  return Promise.all(
    stray.map(async path => ({
      name: path.slice(paths.data.length + 1),
      why: LEFT,
      bytes: await bytesIn(path),
      remove: () => removeTree(paths.data, path),
    })),
  );
};

const bytesIn = async (path: string): Promise<number> => {
  const all = [path, ...(await readdir(path, { recursive: true }).catch(() => [])).map(name => join(path, name))];
  const stats = await Promise.all(all.map(one => lstat(one).catch(() => undefined)));
  return stats.reduce((sum, stat) => sum + (stat?.blocks ?? 0) * 512, 0);
};
