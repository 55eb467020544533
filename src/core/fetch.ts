/** The story of a download: what is meant, one download of it, a place for it, its record. */
import { link, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { AssetKind } from '../api/asset.ts';
import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import { proofNames, type Stage } from '../api/pipeline.ts';
import type { Provider } from '../api/provider.ts';
import { landDebianKernel } from '../assets/debian-kernel.ts';
import { resolveVersion } from '../assets/discover.ts';
import { plainPipeline } from '../assets/from.ts';
import { runPipeline } from '../assets/pipeline.ts';
import { varsOf } from '../assets/provider.ts';
import { verifyFile } from '../assets/verify.ts';
import { pause } from '../lib/deadline.ts';
import { ensureDir, publish, removeTree } from '../lib/files.ts';
import type { AssetOf } from '../store/store.ts';
import { needAsset, needProvider } from './find.ts';
import type { Host } from './host.ts';
import { removeInitrds } from './initrd.ts';
import type { JobContext } from './jobs.ts';
import { inTemp, landDir } from './land.ts';
import { type Order, orderOf, type Wish } from './order.ts';
import { assetDir } from './paths.ts';
import { type Asset, type Base, SORTS, type Sort, verifyFiles } from './sort.ts';
import { tokenFor } from './token.ts';
import { useAsset } from './using.ts';

/** Starts the job that fetches what is wished for. `landed` is called when it is there. */
export const startDownload = async <K extends AssetKind>(
  host: Host,
  kind: K,
  wish: Wish,
  landed: () => Promise<void> = async () => {},
): Promise<Job> => {
  const order = await orderOf(host, kind, wish);
  const { subject } = order;
  // what turns out to be the same is fetched once: see Downloads
  return host.jobs.start({ kind: `${kind}.download`, subject, input: order, side_by_side: true }, job =>
    inTemp(host, job.job_id, async temp => {
      const id = await fetchOrder(host, kind, order, job, temp);
      await landed();
      return id;
    }).catch(async error => {
      throw await orPackages(host, order, error);
    }),
  );
};

/** Fetches what an order means, in a job that may be for more than that; gives its ID. */
export const fetchOrder = async (
  host: Host,
  kind: AssetKind,
  order: Order,
  job: JobContext,
  temp: string,
): Promise<string> => {
  const goal = await resolve(host, job, order, temp);
  return host.downloads.run(goal.key, job, shared => fetchGoal(host, kind, goal, shared));
};

/** Where a source of kernels cannot be reached, the machine's own package archive often can. */
const orPackages = async ({ store }: Host, { kind, provider }: Order, error: unknown): Promise<unknown> => {
  if (!(error instanceof Fault) || error.code !== 'host' || kind !== 'kernel') return error;
  const other = (await store.listProviders(kind)).find(p => p.type === 'debian');
  if (other === undefined || other.id === provider) return error;
  const hint = `${error.hint ?? ''} Or: nexusctl kernel download --provider ${other.name}`.trimStart();
  return new Fault('host', error.message, { hint, cause: error });
};

/** One version of one asset, from one place. */
interface Goal extends Order {
  readonly version: string;
  readonly source: Provider | null;
  /** When the row of the provider was read: what is changed in it from then on counts for later downloads. */
  readonly read_at_ms: number;
  readonly key: string;
}

const resolve = async (host: Host, job: JobContext, order: Order, dir: string): Promise<Goal> => {
  const read_at_ms = Date.now();
  const source = order.provider === null ? null : await needProvider(host, order.provider);
  let { version } = order;
  if (source !== null && order.from === null) {
    job.progress({ stage: 'find the version', done: 0, total: 1, unit: 'steps' });
    const look = { dir, signal: job.signal, onLog: job.log, token: await tokenFor(host, source) };
    version = await resolveVersion(source, version ?? undefined, order.arch, look);
  }
  if (version === null) throw new Fault('invalid', 'Name a version.');
  const { kind, distro, arch, packages, from, sha256 } = order;
  const from_where = source === null ? [from?.place] : [source.id, source.updated_at_ms];
  const key = JSON.stringify([kind, from_where, sha256, distro, version, arch, packages]);
  return { ...order, version, source, read_at_ms, key };
};

const fetchGoal = async <K extends AssetKind>(host: Host, kind: K, goal: Goal, job: JobContext): Promise<string> => {
  const found = await onDisk(host, kind, goal, job);
  if (found !== undefined) return found.id;
  await host.disks.needRoom(`fetch ${kind} '${goal.version}'`, 0);
  return inTemp(host, `${job.job_id}-files`, async temp => {
    const dir = await ensureDir(join(temp, kind), 0o700);
    const asset = await host.step('asset.fetch', () => land(host, kind, goal, { job, dir, temp }));
    job.signal.throwIfAborted();
    return keep(host, kind, asset, dir, job);
  });
};

/** True if what the provider's row demands now is what the asset was proven by: it came after the last change of the row. */
const isProvenBy = (source: Provider, { provider, proofs, created_at_ms }: Asset): boolean =>
  provider === source.name &&
  created_at_ms > source.updated_at_ms &&
  new Set(proofNames(source.pipeline)).symmetricDifference(new Set(proofs)).size === 0;

/**
 * The same, here already, proven as its provider's row demands now, and whole. What packages give may be another than what they gave;
 * there the content decides.
 */
const onDisk = async <K extends AssetKind>(
  host: Host,
  kind: K,
  { source, version, arch, distro, sha256 }: Goal,
  job: JobContext,
): Promise<AssetOf[K] | undefined> => {
  if (source === null || sha256 !== null || (kind === 'rootfs' && source.type === 'debian')) return undefined;
  const found = (await host.store.assets[kind].list()).find(
    a => isProvenBy(source, a) && a.version === version && a.arch === arch && (!('distro' in a) || a.distro === distro),
  );
  if (found === undefined) return undefined;
  using used = await held(host, kind, found);
  if (used === undefined || !(await isWhole(host, kind, found, job))) return undefined;
  job.log(`${version} is on disk already, and is what was verified`);
  return found;
};

/** Keeps a record that is there from being removed; undefined if it is gone, or going. */
const held = async <K extends AssetKind>(host: Host, kind: K, asset: AssetOf[K]): Promise<Disposable | undefined> => {
  try {
    return await useAsset(host, asset, (_host, id) => needAsset(host, kind, id));
  } catch (error) {
    if (error instanceof Fault && error.code === 'not_found') return undefined;
    throw error;
  }
};

/** True if the files of what is held are what was recorded. */
const isWhole = async <K extends AssetKind>(
  host: Host,
  kind: K,
  asset: AssetOf[K],
  { signal, log }: JobContext,
): Promise<boolean> => {
  try {
    await verifyFiles(kind, assetDir(host.paths, kind, asset.id), asset, signal);
    return true;
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'unverified') throw error;
    log(error.message);
    return false;
  }
};

interface Place {
  job: JobContext;
  /** Where the files land. */
  dir: string;
  /** For what is needed on the way. */
  temp: string;
}

/** Runs the pipeline and checks what came of it; gives the record that is not stored yet. */
const land = async <K extends AssetKind>(host: Host, kind: K, goal: Goal, at: Place): Promise<AssetOf[K]> => {
  const { version, arch, distro, source, read_at_ms } = goal;
  const sort: Sort<K> = SORTS[kind];
  const landed = await run(host, kind, goal, at).catch((error: unknown) => {
    const missing = error instanceof Fault && error.code === 'not_found' && source !== null;
    throw missing ? notThere(kind, goal, source, error) : error;
  });
  const base: Base = {
    ...{ version, arch, distro, provider: source?.name ?? null },
    ...{ source: landed.source, proofs: landed.proofs, ...landed.file },
    ...{ is_default: false, created_at_ms: read_at_ms },
  };
  await sort.check(at.dir, base, landed.beside);
  return sort.record(base, landed.beside);
};

const notThere = (kind: AssetKind, { version, arch }: Goal, { name }: Provider, cause: Fault): Fault =>
  new Fault('not_found', `Cannot find ${kind} '${version}' for ${arch} at provider '${name}': ${cause.message}`, {
    hint: cause.hint ?? `nexusctl ${kind} list --available --provider ${name}`,
    cause,
  });

const run = async (host: Host, kind: AssetKind, goal: Goal, { job, dir, temp }: Place) => {
  const { source, version, arch, from, sha256 } = goal;
  const { signal, progress: onProgress, log: onLog } = job;
  const { file, limits } = SORTS[kind];
  const plain = from === null || source !== null ? undefined : plainPipeline(kind, from, sha256 ?? undefined);
  const [first, ...rest] = plain ?? source?.pipeline ?? [];
  if (first === undefined) throw new Error('a goal without provider has a place that was named');
  const given: Stage[] = plain === undefined && sha256 !== null ? [{ stage: 'sha256', expect: { hash: sha256 } }] : [];
  using room = new DisposableStack();
  const common = {
    pipeline: [first, ...given, ...rest],
    vars: source === null ? { version, arch } : varsOf(source, { version, arch }),
    keys: source?.keys ?? [],
    unverified: source === null ? from?.is_url === false : source.unverified,
    ...(source === null ? {} : { token: await tokenFor(host, source) }),
    ...{ dir, file, limits, packages: goal.packages, owner: host.paths.data, signal, onProgress, onLog },
    onLength: async (bytes: number) => {
      room.use(await host.disks.promiseRoom(`fetch ${kind} '${version}'`, bytes));
    },
  };
  if (source?.type !== 'debian' || kind !== 'kernel') return await runPipeline(common);
  const work = await ensureDir(join(temp, 'modules'), 0o700);
  return await landDebianKernel(common, { release: version, work });
};

/** How often, and after what time, one looks whether a removal of the same content is through. */
const REMOVALS = 100;
const REMOVAL_MS = 50;

/** Gives the files their place and the record its row; content that is there already is kept once. Gives the ID. */
const keep = async <K extends AssetKind>(
  host: Host,
  kind: K,
  asset: AssetOf[K],
  dir: string,
  job: JobContext,
): Promise<string> => {
  await shareContent(host, kind, asset, dir, job);
  const final = assetDir(host.paths, kind, asset.id);
  await host.step('asset.land', () => landDir(dir, final));
  let kept: AssetOf[K] | undefined;
  try {
    for (let tries = 0; ; tries++) {
      const row = await host.step('asset.insert', () => host.store.assets[kind].insert(asset));
      kept = row;
      if (row.id === asset.id) return row.id;
      using used = await held(host, kind, row);
      if (used !== undefined) {
        job.log(`${asset.version} is on disk already`);
        if (!(await isWhole(host, kind, row, job))) await mend(host, kind, row, final);
        return row.id;
      }
      if (tries === REMOVALS) throw new Fault('in_use', `Cannot keep ${SORTS[kind].name(row)}: it is being removed.`);
      await pause(REMOVAL_MS, job.signal);
    }
  } finally {
    if (kept?.id !== asset.id) await removeTree(host.paths.data, final);
  }
};

/** Puts good files in the place of those that are no longer what was recorded, and takes away what was made of the bad ones. */
const mend = async <K extends AssetKind>(host: Host, kind: K, asset: AssetOf[K], from: string): Promise<void> => {
  const sort: Sort<K> = SORTS[kind];
  const to = await ensureDir(assetDir(host.paths, kind, asset.id), 0o700);
  const put = (name: string) => publish(join(from, name), join(to, name));
  const forget = async () => {
    if (kind === 'kernel') await removeInitrds(host, asset.id);
  };
  // before, for one who is killed in between finds good files and looks no further; after, for a start may have made one meanwhile
  await host.step('mend.forget', forget);
  await host.step('mend.file', () => put(sort.file));
  await host.step('mend.beside', async () => {
    for (const name of Object.keys(sort.beside(asset))) await put(name);
  });
  await host.step('mend.again', forget);
};

/** The same content under another name needs no room of its own. */
const shareContent = async <K extends AssetKind>(
  host: Host,
  kind: K,
  asset: AssetOf[K],
  dir: string,
  { signal, log }: JobContext,
): Promise<void> => {
  const { file } = SORTS[kind];
  const other = (await host.store.assets[kind].list()).find(a => a.sha256 === asset.sha256);
  if (other === undefined) return;
  const theirs = join(assetDir(host.paths, kind, other.id), file);
  const same = join(dir, `${file}.same`);
  try {
    await verifyFile(theirs, asset, signal);
    await host.step('asset.share', async () => {
      await link(theirs, same);
      await publish(same, join(dir, file));
    });
  } catch {
    await rm(same, { force: true });
    signal.throwIfAborted();
    return; // it is damaged, or there are no links here: then the content is there twice
  }
  log(`its content is that of ${SORTS[kind].name(other)}`);
};
