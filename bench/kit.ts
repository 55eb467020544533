/** What every bench prints: its end point, p50, p99, and the machine. */
import { cpus, release, totalmem } from 'node:os';
import process from 'node:process';
import { formatBytes } from '../src/lib/size.ts';

export const quantile = (samples: readonly number[], q: number): number => {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
};

export const machine = (): string => {
  const all = cpus();
  return `${all.length} x ${all[0]?.model.trim()}, ${formatBytes(totalmem())}, Linux ${release()}, Node ${process.versions.node}`;
};

export interface Figure {
  name: string;
  /** What is measured, from where to where. */
  what: string;
  samples: number[];
  unit: 'ms' | 'MiB' | 'x';
  /** The limit that holds for the p50. */
  limit: number;
}

/** Prints a figure and tells whether its p50 keeps the limit. */
export const report = (figure: Figure): boolean => {
  const { name, what, samples, unit, limit } = figure;
  const p50 = quantile(samples, 0.5);
  const ok = p50 <= limit;
  const show = (n: number) => `${n.toFixed(n < 10 ? 2 : 1)} ${unit}`;
  console.log(
    `${ok ? 'ok  ' : 'OVER'} ${name}: p50 ${show(p50)}, p99 ${show(quantile(samples, 0.99))}, limit ${show(limit)}`,
  );
  console.log(`     ${what}; ${samples.length} samples`);
  return ok;
};
