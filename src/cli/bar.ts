/** Progress on a terminal is one live line; elsewhere a plain line now and then. */
import process from 'node:process';
import type { JobProgress } from '../api/job.ts';
import { formatBytes } from '../lib/size.ts';
import { plain } from '../lib/text.ts';

const REDRAW_MS = 100;
const PLAIN_MS = 5000;
const WIDTH = 24;

export interface Bar {
  show(progress: JobProgress): void;
  /** Removes the live line, so that others can write. */
  clear(): void;
}

const amount = (p: JobProgress): string => {
  const text = (n: number) => (p.unit === 'bytes' ? formatBytes(n) : String(n));
  return p.total === null ? text(p.done) : `${text(p.done)} of ${text(p.total)}`;
};

/** Bytes a second since the stage began, once that says something. */
const makeRate = () => {
  let stage = '';
  let from = { at: 0, done: 0 };
  return (p: JobProgress, now: number): string => {
    if (p.stage !== stage) {
      stage = p.stage;
      from = { at: now, done: p.done };
    }
    const s = (now - from.at) / 1000;
    return p.unit === 'bytes' && s > 0.5 ? `  ${formatBytes((p.done - from.done) / s)}/s` : '';
  };
};

const drawing = (p: JobProgress): string => {
  if (p.total === null || p.total === 0) return '';
  const part = Math.min(1, p.done / p.total);
  const full = Math.round(part * WIDTH);
  return `  [${'#'.repeat(full)}${'-'.repeat(WIDTH - full)}] ${String(Math.floor(part * 100)).padStart(3)}%`;
};

const liveBar = (indent: string): Bar => {
  const rate = makeRate();
  let drawn = 0;
  let shown = false;
  let stage = '';
  return {
    show: p => {
      const now = performance.now();
      const speed = rate(p, now);
      if (p.stage === stage && now - drawn < REDRAW_MS) return;
      [drawn, stage, shown] = [now, p.stage, true];
      const counted = p.total !== null || p.done > 0 ? `  ${amount(p)}` : '';
      const [head, tail] = [`${indent}${plain(p.stage)}`, `${counted}${speed}`];
      // a terminal that does not know how wide it is says 0
      const room = Math.max(20, (process.stderr.columns || 80) - 1);
      const whole = `${head}${drawing(p)}${tail}`;
      // where it is narrow the figures say more than the picture
      process.stderr.write(`\r\u001b[K${(whole.length > room ? head + tail : whole).slice(0, room)}`);
    },
    clear: () => {
      if (shown) process.stderr.write('\r\u001b[K');
      shown = false;
    },
  };
};

const plainBar = (indent: string): Bar => {
  const rate = makeRate();
  let stage = '';
  let said = 0;
  return {
    show: p => {
      const now = performance.now();
      const speed = rate(p, now);
      if (p.stage === stage && now - said < PLAIN_MS) return;
      const counted = p.stage === stage ? `: ${amount(p)}${speed}` : '';
      [stage, said] = [p.stage, now];
      process.stderr.write(`${indent}${plain(p.stage)}${counted}\n`);
    },
    clear: () => {},
  };
};

export const makeBar = (indent = ''): Bar => (process.stderr.isTTY === true ? liveBar(indent) : plainBar(indent));
