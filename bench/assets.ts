/**
 * Downloads (needs curl, xz and 3 GiB in NEXUS_BENCH_DIR, default /var/tmp). One pipeline (HTTPS, sha256, xz, sha256, disk) against the same in a shell, in turn, from one server: in a process of its own, and as a job of a daemon. And the peak
 * memory of daemons that download files of 256 MiB and 1 GiB.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import type { Job } from '../src/api/job.ts';
import type { Stage } from '../src/api/pipeline.ts';
import { sha256File } from '../src/lib/files.ts';
import { run } from '../src/lib/proc.ts';
import { testKernel } from '../test/kit/assets.ts';
import { type World, world } from '../test/kit/world.ts';
import { BUNDLE, type Figure, peak, quantile, roomy } from './kit.ts';

const ROUNDS = Number(process.env.NEXUS_BENCH_ROUNDS ?? 7);
const DAEMONS = 5;

interface Made {
  packed: string;
  packed_sha256: string;
  sha256: string;
}

/** A file of so many MiB out of a real kernel, packed; only that is kept. */
const make = async (base: string, mib: number): Promise<Made> => {
  const kernel = await readFile((await testKernel('6.12')).vmlinux);
  const path = join(base, `${mib}`);
  const file = await open(path, 'w');
  for (let left = mib * 1024 * 1024; left > 0; left -= kernel.length) await file.write(kernel.subarray(0, left));
  await file.close();
  const sha256 = await sha256File(path);
  await run(['xz', '-1', '-T0', path], { timeout_ms: 600_000 });
  return { packed: `${path}.xz`, packed_sha256: await sha256File(`${path}.xz`), sha256 };
};

/** A server in a process of its own. */
const serve = async (path: string): Promise<{ url: string; ca: string } & AsyncDisposable> => {
  const argv = ['--no-warnings', join(import.meta.dirname, 'serve.ts'), path];
  const child: ChildProcess = spawn(process.execPath, argv, { stdio: ['pipe', 'pipe', 'inherit'] });
  if (child.stdout === null) throw new Error('no output');
  const [line] = await once(createInterface(child.stdout), 'line');
  const end = async () => {
    child.stdin?.end();
    await once(child, 'exit');
  };
  return { ...JSON.parse(String(line)), [Symbol.asyncDispose]: end };
};

const emptied = async (base: string): Promise<string> => {
  const dir = join(base, 'out');
  await rm(dir, { recursive: true, force: true });
  await mkdir(dir);
  return dir;
};

const ours = async (base: string, url: string, ca: string, made: Made): Promise<number> => {
  const argv = [process.execPath, '--no-warnings', join(import.meta.dirname, 'land.ts'), url];
  const { stdout } = await run([...argv, made.packed_sha256, made.sha256, await emptied(base)], {
    env: { ...process.env, NODE_EXTRA_CA_CERTS: ca },
    timeout_ms: 600_000,
  });
  return Number(stdout);
};

const SHELL = `set -o pipefail
curl -sf --cacert "$2" "$1" | tee >(sha256sum >"$3/a") | xz -dc | tee "$3/file" | sha256sum >"$3/b"`;

const shell = async (base: string, url: string, ca: string): Promise<number> => {
  const dir = await emptied(base);
  const from = performance.now();
  await run(['bash', '-c', SHELL, 'bash', url, ca, dir], { timeout_ms: 600_000 });
  return performance.now() - from;
};

/** A daemon as it is shipped that knows one kernel, the file; each download of it is the first one. */
const inDaemon = async <T>(
  base: string,
  url: string,
  ca: string,
  made: Made,
  work: (w: World, get: () => Promise<Job>) => Promise<T>,
) => {
  const env = { NEXUS_CHECK_OUTPUT: '0', NODE_EXTRA_CA_CERTS: ca };
  await using w = await world({ main: BUNDLE, parent: base, env });
  const hash = (sha256: string): Stage => ({ stage: 'sha256', expect: { hash: sha256 } });
  const pipeline: Stage[] = [{ stage: 'http', url }, hash(made.packed_sha256), { stage: 'xz' }, hash(made.sha256)];
  await w.client.provider.create({ name: 'bench', kind: 'kernel', pipeline });
  const get = async () => {
    const { id } = await w.client.kernel.download({ provider: 'bench', version: '1.0' });
    const job = await w.client.job.wait({ job: id, timeout_ms: 600_000 });
    if (job.state !== 'succeeded') throw new Error(job.error?.detail);
    await w.client.kernel.remove({ kernel: job.result_id ?? '' });
    return job;
  };
  return await work(w, get);
};

const took = ({ started_at_ms, ended_at_ms }: Job): number => (ended_at_ms ?? Number.NaN) - (started_at_ms ?? 0);

const speed = async (base: string): Promise<{ pipeline: number[]; job: number[] }> => {
  const made = await make(base, 200);
  await using server = await serve(made.packed);
  const { url, ca } = server;
  const ratios = { pipeline: [] as number[], job: [] as number[] };
  await inDaemon(base, url, ca, made, async (_w, get) => {
    for (let i = 0; i <= ROUNDS; i++) {
      const theirs = await shell(base, url, ca);
      const own = await ours(base, url, ca, made);
      const job = took(await get());
      console.log(`     shell ${theirs.toFixed(0)} ms, pipeline ${own.toFixed(0)} ms, job of a daemon ${job} ms`);
      if (i === 0) continue; // the first one warms up
      ratios.pipeline.push(own / theirs);
      ratios.job.push(job / theirs);
    }
  });
  await rm(made.packed);
  return ratios;
};

/** Peaks of daemons, each of which downloads one file, of this size and of that in turn. */
const memory = async (base: string, sizes: readonly number[]): Promise<number[]> => {
  const peaks = sizes.map((): number[] => []);
  const files = await Promise.all(sizes.map(mib => make(base, mib)));
  for (let i = 0; i < DAEMONS; i++)
    for (const [at, made] of files.entries()) {
      await using server = await serve(made.packed);
      const most = await inDaemon(base, server.url, server.ca, made, peak);
      console.log(`     ${sizes[at]} MiB: peak ${most.toFixed(1)} MiB`);
      peaks[at]?.push(most);
    }
  return peaks.map(all => quantile(all, 0.5));
};

/** With the word `assets`. */
export const assets = async (): Promise<Figure[]> => {
  await using room = await roomy();
  const { pipeline, job } = await speed(room.dir);
  const [small = Number.NaN, large = Number.NaN] = await memory(room.dir, [256, 1024]);
  const what = 'HTTPS to synced file (ours) against HTTPS to file (curl, tee, xz, sha256sum), 200 MiB, in turn';
  return [
    { name: 'download, the pipeline against the shell', what, samples: pipeline, unit: 'x', limit: 1.1 },
    { name: 'download, a job of nexusd against the shell', what, samples: job, unit: 'x' },
    {
      name: 'peak memory of nexusd, 1 GiB against 256 MiB',
      what: `difference of the medians of VmHWM over the download, of ${DAEMONS} fresh daemons each`,
      samples: [large - small],
      unit: 'MiB',
      limit: 8,
    },
  ];
};
