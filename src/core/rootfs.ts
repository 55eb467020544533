import { join } from 'node:path';
import type { OpIn } from '../api/ops.ts';
import type { Rootfs } from '../api/rootfs.ts';
import { downloadDebianRootfs, verifyRootfs } from '../assets/debian-rootfs.ts';
import { ensureDir, removeTree } from '../lib/files.ts';
import { needRootfs } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import type { JobContext } from './jobs.ts';
import { inTemp, landDir } from './land.ts';
import { rootfsDir } from './paths.ts';
import { takeAsset, useAsset } from './using.ts';

export const rootfsHandlers = (host: Host): HandlersOf<'rootfs'> => ({
  'rootfs.download': (_ctx, input) => {
    const subject = [`${input.distro}:${input.version}`, ...input.packages].join(' ');
    return host.jobs.start({ kind: 'rootfs.download', subject, input }, job => download(host, job, input));
  },
  'rootfs.list': () => host.store.listRootfs(),
  'rootfs.get': (_ctx, { rootfs }) => needRootfs(host, rootfs),
  'rootfs.verify': async (_ctx, { rootfs }) => {
    const record = await needRootfs(host, rootfs);
    using _used = await useAsset(host, record, needRootfs);
    await verifyRootfs(rootfsDir(host.paths, record.id), record);
    return record;
  },
  'rootfs.remove': async (_ctx, { rootfs }) => {
    const { id, distro, version } = await needRootfs(host, rootfs);
    using _taken = takeAsset(host, { id }, `archive '${distro}:${version}'`);
    await host.step('rootfs.record', () => host.store.removeRootfs(id));
    await host.step('rootfs.files', () => removeTree(host.paths.data, rootfsDir(host.paths, id)));
    return {};
  },
});

const download = (host: Host, job: JobContext, input: OpIn<'rootfs.download'>): Promise<string> =>
  inTemp(host, job.job_id, async temp => {
    const dir = await ensureDir(join(temp, 'rootfs'), 0o700);
    const made = await host.step('rootfs.fetch', () =>
      downloadDebianRootfs({
        version: input.version,
        packages: input.packages,
        dir,
        owner: host.paths.data,
        signal: job.signal,
        onProgress: job.progress,
        onLog: job.log,
      }),
    );
    const same = (await host.store.listRootfs()).find(r => r.sha256 === made.sha256 && r.version === made.version);
    if (same !== undefined) {
      job.log(`the archive of ${made.distro}:${made.version} is on disk already`);
      return same.id;
    }
    job.signal.throwIfAborted();
    const rootfs: Rootfs = { id: newId('rfs'), provider: 'debian', ...made, created_at_ms: Date.now() };
    await host.step('rootfs.land', () => landDir(dir, rootfsDir(host.paths, rootfs.id)));
    try {
      await host.step('rootfs.insert', () => host.store.insertRootfs(rootfs));
    } catch (error) {
      await removeTree(host.paths.data, rootfsDir(host.paths, rootfs.id));
      throw error;
    }
    return rootfs.id;
  });
