/** How answers look: tables, one object, JSON. Whatever came from a guest is stripped of control characters. */
import { formatBytes, formatMs } from '../lib/size.ts';
import { plain } from '../lib/text.ts';

const UNITS: readonly [suffix: string, show: (value: number) => string][] = [
  ['_at_ms', value => timeText(value)],
  ['_bytes', formatBytes],
  ['_mib', value => formatBytes(value * 1024 * 1024)],
  ['_ms', formatMs],
];

const two = (n: number): string => String(n).padStart(2, '0');

/** Local time, to the second. */
export const timeText = (ms: number): string => {
  const t = new Date(ms);
  const day = `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
  return `${day} ${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
};

const unitOf = (key: string) => UNITS.find(([suffix]) => key.endsWith(suffix) || key === suffix.slice(1));

/** One value in one line; of a text of several lines the first. */
export const cell = (key: string, value: unknown): string => {
  if (value === null || value === undefined || value === '') return '-';
  if (typeof value === 'number') return unitOf(key)?.[1](value) ?? String(value);
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (Array.isArray(value)) return value.length === 0 ? '-' : value.map(item => cell(key, item)).join(', ');
  if (typeof value === 'object') {
    const parts = Object.entries(value).map(([k, v]) => `${k}=${cell(k, v)}`);
    return parts.length === 0 ? '-' : parts.join(' ');
  }
  const [first = '', ...more] = String(value).split('\n');
  return more.some(line => line !== '') ? `${plain(first)}…` : plain(first);
};

/** A field's name without its unit: memory_mib is memory, created_at_ms is created. */
const label = (key: string): string => {
  const suffix = unitOf(key)?.[0];
  const stem = suffix !== undefined && key.length > suffix.length ? key.slice(0, -suffix.length) : key;
  return stem.replaceAll('_', ' ');
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const pad = (rows: readonly (readonly string[])[]): string => {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((text, i) => {
      widths[i] = Math.max(widths[i] ?? 0, text.length);
    });
  }
  const line = (row: readonly string[]) =>
    row
      .map((text, i) => text.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return rows.map(row => `${line(row)}\n`).join('');
};

export const table = (columns: readonly string[], items: readonly unknown[]): string =>
  pad([
    columns.map(key => label(key).toUpperCase()),
    ...items.map(item => columns.map(key => cell(key, isObject(item) ? item[key] : undefined))),
  ]);

/** Rows of cells, aligned. */
export const aligned = (rows: readonly (readonly string[])[]): string => pad(rows.map(row => row.map(plain)));

const lines = (value: Record<string, unknown>, indent: string): [string, string][] => {
  const out: [string, string][] = [];
  for (const [key, item] of Object.entries(value)) {
    const twice = key.endsWith('_at_ms') && Object.hasOwn(value, key.slice(0, -'_at_ms'.length)); // restart, restart_at_ms
    const name = `${indent}${label(key)}${twice ? ' at' : ''}:`;
    if (isObject(item) && Object.keys(item).length > 0) out.push([name, ''], ...lines(item, `${indent}  `));
    else if (Array.isArray(item) && item.length > 0) {
      out.push([name, ''], ...item.map((one): [string, string] => [`${indent}  ${cell(key, one)}`, '']));
    } else out.push([name, cell(key, item)]);
  }
  return out;
};

/** One object as aligned `key: value` lines. */
export const details = (value: Record<string, unknown>): string => {
  const rows = lines(value, '');
  const width = Math.min(24, Math.max(0, ...rows.filter(([, text]) => text !== '').map(([key]) => key.length)));
  return rows.map(([key, text]) => `${text === '' ? key : `${key.padEnd(width)}  ${text}`}\n`).join('');
};

/** JSON that is safe on a terminal: control characters that JSON itself lets through are escaped. */
export const json = (value: unknown, indent = 2): string =>
  `${JSON.stringify(value, null, indent).replace(
    /[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )}\n`;
