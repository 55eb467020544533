import { join } from 'node:path';
import type { Kernel } from '../api/kernel.ts';
import { downloadDebianKernel, verifyKernel } from '../assets/debian-kernel.ts';
import { ensureDir, removeTree } from '../lib/files.ts';
import { needKernel } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { removeInitrds } from './initrd.ts';
import type { JobContext } from './jobs.ts';
import { inTemp, landDir } from './land.ts';
import { kernelDir } from './paths.ts';
import { takeAsset, useAsset } from './using.ts';

export const kernelHandlers = (host: Host): HandlersOf<'kernel'> => ({
  'kernel.download': (_ctx, input) => {
    const subject = `${input.provider}:${input.version ?? 'newest'}`;
    return host.jobs.start({ kind: 'kernel.download', subject, input }, job => download(host, job, input.version));
  },
  'kernel.list': () => host.store.listKernels(),
  'kernel.get': (_ctx, { kernel }) => needKernel(host, kernel),
  'kernel.verify': async (_ctx, { kernel }) => {
    const record = await needKernel(host, kernel);
    using _used = await useAsset(host, record, needKernel);
    await verifyKernel(kernelDir(host.paths, record.id), record);
    return record;
  },
  'kernel.remove': async (_ctx, { kernel }) => {
    const { id, version } = await needKernel(host, kernel);
    using _taken = takeAsset(host, { id }, `kernel '${version}'`);
    await host.step('kernel.record', () => host.store.removeKernel(id));
    await host.step('kernel.initrds', () => removeInitrds(host, id));
    await host.step('kernel.files', () => removeTree(host.paths.data, kernelDir(host.paths, id)));
    return {};
  },
});

const download = (host: Host, job: JobContext, version: string | undefined): Promise<string> =>
  inTemp(host, job.job_id, async temp => {
    const dir = await ensureDir(join(temp, 'kernel'), 0o700);
    const made = await host.step('kernel.fetch', () =>
      downloadDebianKernel({
        ...(version === undefined ? {} : { version }),
        dir,
        signal: job.signal,
        onProgress: job.progress,
        onLog: job.log,
      }),
    );
    job.signal.throwIfAborted();
    const kernel: Kernel = { id: newId('krn'), provider: 'debian', ...made, created_at_ms: Date.now() };
    await host.step('kernel.land', () => landDir(dir, kernelDir(host.paths, kernel.id)));
    let kept: Kernel | undefined;
    try {
      kept = await host.step('kernel.insert', () => host.store.insertKernel(kernel));
    } finally {
      if (kept?.id !== kernel.id) await removeTree(host.paths.data, kernelDir(host.paths, kernel.id));
    }
    // another download, under another name, may have been faster by a moment
    if (kept.id !== kernel.id) job.log(`kernel ${made.version} is on disk already`);
    return kept.id;
  });
