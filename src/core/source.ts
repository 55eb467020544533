/** What a template or a build names as its source: found on disk, or fetched. */
import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { Rootfs } from '../api/rootfs.ts';
import type { Template } from '../api/template.ts';
import { readFrom } from '../assets/from.ts';
import { plain } from '../lib/text.ts';
import { fetchOrder } from './fetch.ts';
import { needRootfs } from './find.ts';
import type { Host } from './host.ts';
import type { JobContext } from './jobs.ts';
import { refuseImport } from './layers.ts';
import { type Order, orderOf } from './order.ts';

/** What is asked for; whose it is, for messages and for what was fetched before. */
export type Wanted = Pick<Template, 'source' | 'sha256'> & { template_id?: string | null };

const isPlace = (source: string): boolean => source.startsWith('/') || source.includes('://');

/** my-rootfs.tar.zst is my-rootfs. */
const stemOf = (name: string): string =>
  name
    .replace(/(\.tar)?\.(xz|gz|zst|tgz|txz|tar)$/, '')
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]/g, '-')
    .replace(/^[^a-z0-9]+/, '')
    .slice(0, 63) || 'archive';

/** How to get it, where it is not on disk; faults for what nobody could get. */
const orderFor = async (host: Host, { source, sha256 }: Wanted): Promise<Order> => {
  if (isPlace(source)) {
    const otherwise = { distro: stemOf(readFrom(source).name), version: '0' };
    return orderOf(host, 'rootfs', { from: source, sha256: sha256 ?? undefined, otherwise });
  }
  const [distro = '', version] = source.split(':');
  return orderOf(host, 'rootfs', { distro, version });
};

const onDisk = async (host: Host, wanted: Wanted): Promise<Rootfs | undefined> => {
  const { source, sha256, template_id } = wanted;
  if (ID_PATTERN.test(source)) return needRootfs(host, source);
  if (!isPlace(source)) return host.store.assets.rootfs.find(source);
  if (sha256 === null || template_id == null) return undefined;
  // the same bytes again: what they were unpacked to is known
  const before = await host.store.listBuilds({ template_id, limit: 100 });
  const same = before.find(b => b.source === source && b.sha256 === sha256 && b.rootfs_id !== null);
  return same?.rootfs_id == null ? undefined : host.store.assets.rootfs.find(same.rootfs_id);
};

const wrong = (why: string): Fault => new Fault('invalid', `Cannot use that source: ${why}.`);

/** A build reads it when it runs; one that is not there now was mistyped. */
const checkFile = async (path: string): Promise<void> => {
  try {
    await access(path, constants.R_OK);
    if ((await stat(path)).isFile()) return;
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : cause;
    throw wrong(code === 'ENOENT' ? `${plain(path)} is not there` : `${plain(path)} cannot be read: ${code}`);
  }
  throw wrong(`${plain(path)} is no file`);
};

/** Refuses now what no build could find. */
export const checkSource = async (
  host: Host,
  { source, source_type, sha256 }: Pick<Template, 'source' | 'source_type' | 'sha256'>,
): Promise<void> => {
  if (sha256 !== null && (source_type === 'image' || !isPlace(source)))
    throw wrong('a hash goes with a path or a URL, other sources are verified by themselves');
  if (source_type === 'image') {
    const image = await host.store.findImage(source);
    if (image !== undefined) refuseImport(image);
    if (image !== undefined || (await host.store.findTemplate(source)) !== undefined) return;
    throw new Fault('not_found', `There is no image or template '${source}'.`, { hint: 'nexusctl image list' });
  }
  if (source.startsWith('/')) await checkFile(source);
  if ((await onDisk(host, { source, sha256 })) === undefined) await orderFor(host, { source, sha256 });
};

/** The archive, which is fetched where it is not on disk. */
export const obtain = async (host: Host, job: JobContext, wanted: Wanted, temp: string): Promise<Rootfs> => {
  const here = await onDisk(host, wanted);
  if (here !== undefined) return here;
  const order = await orderFor(host, wanted);
  job.log(`fetching ${order.subject}`);
  return needRootfs(host, await fetchOrder(host, 'rootfs', order, job, temp));
};
