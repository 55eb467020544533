/** What Alpine's mirrors have. Facts: `latest-releases.yaml` in each `v<series>/releases/<arch>/` names the newest files of that series. */
import { parse } from 'yaml';
import { z } from 'zod';
import { Version } from '../api/asset.ts';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';
import { getBytes, type HttpOptions } from './http.ts';
import { matches } from './versions.ts';

const LIST_BYTES = 1024 * 1024;
/** Series that are looked at, from the newest one down. Alpine supports four. */
const SERIES = 8;

const Entry = z.looseObject({ flavor: z.string().max(64), version: z.string().max(64), arch: z.string().max(64) });

export interface Mirror {
  /** The folder with `latest-stable` in it. */
  base: string;
  flavor: string;
}

/** What the mirror names must be a version, and one of the series that was asked for: it becomes a part of URLs, and the name on disk. */
const checked = (version: string | undefined, series: string, url: string): string | undefined => {
  if (version === undefined) return undefined;
  const wish = series === 'latest-stable' ? undefined : series.replace(/^v/, '');
  if (Version.safeParse(version).success && matches(version, wish)) return version;
  const what = wish === undefined ? 'no version' : `no version of ${plain(wish)}`;
  throw new Fault('unverified', `Cannot use ${plain(url)}: '${plain(version)}', which it names, is ${what}.`);
};

/** The newest version of a series (`v3.21`, `latest-stable`), or undefined if the mirror has none. */
export const newestOf = async (
  { base, flavor }: Mirror,
  series: string,
  arch: Arch,
  options: HttpOptions,
): Promise<string | undefined> => {
  const url = `${base}/${series}/releases/${arch}/latest-releases.yaml`;
  let text: string;
  try {
    text = (await getBytes(url, { ...options, max_bytes: LIST_BYTES })).bytes.toString('utf8');
  } catch (error) {
    if (error instanceof Fault && error.code === 'not_found') return undefined;
    throw error;
  }
  let entries: z.infer<typeof Entry>[];
  try {
    entries = z
      .array(Entry)
      .max(1000)
      .parse(parse(text, { maxAliasCount: 0 }));
  } catch (error) {
    throw new Fault('unsupported', `Cannot read ${url}: it is no list of Alpine releases.`, { cause: error });
  }
  return checked(entries.find(e => e.flavor === flavor && e.arch === arch)?.version, series, url);
};

/** The newest version of each series, newest first. */
export const newestOfAll = async (mirror: Mirror, arch: Arch, options: HttpOptions): Promise<string[]> => {
  const newest = await newestOf(mirror, 'latest-stable', arch, options);
  const [, major, minor] = /^(\d{1,4})\.(\d{1,4})/.exec(newest ?? '') ?? [];
  if (newest === undefined || major === undefined) return [];
  const below = Array.from({ length: SERIES - 1 }, (_, i) => Number(minor) - 1 - i).filter(n => n >= 0);
  const others = await Promise.all(below.map(n => newestOf(mirror, `v${major}.${n}`, arch, options)));
  return [newest, ...others.filter(one => one !== undefined)];
};
