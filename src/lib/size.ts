/** Human sizes and durations. Sizes are binary: K = 1024. */
const SIZE = { '': 1, b: 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 } as const;
const TIME = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `8G`, `512M`, `1.5GiB`, `4096` -> bytes; undefined if it is not a size. */
export const parseBytes = (text: string): number | undefined => {
  const m = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  if (m === null) return undefined;
  const bytes = Number(m[1]) * SIZE[(m[2] ?? '').toLowerCase() as keyof typeof SIZE];
  return Number.isSafeInteger(Math.round(bytes)) ? Math.round(bytes) : undefined;
};

/** `90s`, `10m`, `1h30m`, `250ms` -> ms; a bare number is seconds; undefined if it is not a duration. */
export const parseMs = (text: string): number | undefined => {
  const trimmed = text.trim().toLowerCase();
  if (/^\d+(\.\d+)?$/.test(trimmed)) return Math.round(Number(trimmed) * 1000);
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d))+$/.test(trimmed)) return undefined;
  let ms = 0;
  for (const m of trimmed.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g))
    ms += Number(m[1]) * TIME[m[2] as keyof typeof TIME];
  return Math.round(ms);
};

const BLOCK = 4096;

/** The length of a disk that has so many bytes: a VMM has whole sectors, ext4 whole blocks. */
export const diskLength = (bytes: number): number => Math.ceil(bytes / BLOCK) * BLOCK;

/** 8589934592 -> `8 GiB`, 1536 -> `1.5 KiB`. */
export const formatBytes = (bytes: number): string => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let i = 0;
  while (value >= 1024 && i < units.length - 1) {
    value /= 1024;
    i++;
  }
  return `${i === 0 || value >= 100 ? Math.round(value) : Math.round(value * 10) / 10} ${units[i]}`;
};

/** 45 -> `45 ms`, 1234 -> `1.2 s`, 75_000 -> `1m 15s`. */
export const formatMs = (ms: number): string => {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  return s < 3600 ? `${Math.floor(s / 60)}m ${s % 60}s` : `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
};
