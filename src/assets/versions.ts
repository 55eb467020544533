/** How versions compare, and what a wish for one means. */

/** Numbers compare as numbers: 6.1.0-9 < 6.1.0-10 < 6.12.1. Each once, newest first. */
export const newestFirst = (versions: readonly string[]): string[] =>
  [...new Set(versions)].sort((a, b) => b.localeCompare(a, 'en', { numeric: true }));

/** True if `version` is `wish` or belongs to that series: 6.1 has 6.1.0-40, and not 6.12.1. */
export const matches = (version: string, wish: string | undefined): boolean =>
  wish === undefined || version === wish || ['.', '-', '+'].some(c => version.startsWith(`${wish}${c}`));
