/** What every bench prints: its end point, p50, p99, and the machine. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import type { VmmKind } from '../src/api/vm.ts';
import { formatBytes } from '../src/lib/size.ts';
import { REPO, type World, world } from '../test/kit/world.ts';

export const BUNDLE = join(REPO, 'dist/main.mjs');

export const quantile = (samples: readonly number[], q: number): number => {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
};

export const machine = (): string => {
  const all = cpus();
  return `${all.length} x ${all[0]?.model.trim()}, ${formatBytes(totalmem())}, Linux ${release()}, Node ${process.versions.node}`;
};

/** A directory for files of gigabytes, until it is disposed of. */
export const roomy = async (): Promise<{ dir: string } & AsyncDisposable> => {
  const dir = await mkdtemp(join(process.env.NEXUS_BENCH_DIR ?? '/var/tmp', 'nexus-bench-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

/** How long the work took, ms. */
export const timed = async (work: () => unknown): Promise<number> => {
  const from = performance.now();
  await work();
  return performance.now() - from;
};

/** One of the memory fields of a /proc/<pid>/status, MiB. */
export const memory = (status: string, field: 'VmRSS' | 'VmHWM'): number =>
  Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(status)?.[1]) / 1024;

/** The daemon's peak while `work` is done, MiB. */
export const peak = async (w: World, work: () => Promise<unknown>): Promise<number> => {
  const proc = `/proc/${w.daemon().pid}`;
  await writeFile(`${proc}/clear_refs`, '5'); // the peak begins anew: proc(5)
  await work();
  return memory(await readFile(`${proc}/status`, 'utf8'), 'VmHWM');
};

export interface Figure {
  name: string;
  /** What is measured, from where to where. */
  what: string;
  samples: number[];
  unit: 'ms' | 'MiB' | 'MiB/s' | 'x' | 'wakes';
  /** None: it is there to be compared with. */
  limit?: number;
  /** What the limit holds for; default: the p50. */
  holds_for?: 'p50' | 'p99';
}

/** Prints a figure and tells whether it keeps its limit. */
export const report = (figure: Figure): boolean => {
  const { name, what, samples, unit, limit = Number.POSITIVE_INFINITY, holds_for = 'p50' } = figure;
  const [p50, p99] = [quantile(samples, 0.5), quantile(samples, 0.99)];
  const ok = (holds_for === 'p50' ? p50 : p99) <= limit;
  const show = (n: number) => `${n.toFixed(n < 10 ? 2 : 1)} ${unit}`;
  const asked = Number.isFinite(limit) ? `, limit ${show(limit)} for the ${holds_for}` : '';
  console.log(`${ok ? 'ok  ' : 'OVER'} ${name}: p50 ${show(p50)}, p99 ${show(p99)}${asked}`);
  console.log(`     ${what}; ${samples.length} samples`);
  return ok;
};

/** A daemon as it is shipped, without the checks of the tests, on the stand-in of a VMM. */
export const shipped = (vmm: VmmKind): Promise<World> =>
  world({ main: BUNDLE, seed: 'booted', [vmm]: 'standin', env: { NEXUS_CHECK_OUTPUT: '0' } });

export const VMMS: readonly VmmKind[] = ['firecracker', 'qemu'];
