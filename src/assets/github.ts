/** Releases of a GitHub repository. Facts: https://docs.github.com/en/rest/releases/releases, …/using-the-rest-api/rate-limits-for-the-rest-api */
import type { IncomingHttpHeaders } from 'node:http';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import { getBytes, type HttpOptions, httpsUrl } from './http.ts';

/** Bounds for what an API says: pages of a hundred releases, and bytes of one. GitHub's are up to a MiB or so. */
const MAX_PAGES = 10;
const PAGE_BYTES = 16 * 1024 * 1024;

const Release = z.looseObject({
  tag_name: z.string().max(256),
  draft: z.boolean().default(false),
  prerelease: z.boolean().default(false),
  assets: z.array(z.looseObject({ name: z.string().max(512) })).default([]),
});
export type Release = z.infer<typeof Release>;

export interface Repository {
  /** `https://api.github.com`, or another that answers as it does. */
  api: string;
  /** owner/name */
  repo: string;
}

const HINT = 'Set NEXUS_GITHUB_TOKEN (or GITHUB_TOKEN) for nexusd: with a token the limit is far higher.';

/** The primary limit says when it ends, the secondary one how long to wait. */
export const rateLimit = (status: number, headers: IncomingHttpHeaders): Fault | undefined => {
  if (status !== 403 && status !== 429) return undefined;
  const number = (name: string) => (/^\d{1,12}$/.test(String(headers[name])) ? Number(headers[name]) : undefined);
  const after = number('retry-after');
  const reset = number('x-ratelimit-reset');
  if (number('x-ratelimit-remaining') !== 0 && after === undefined) return undefined;
  const at = after === undefined ? reset : Math.floor(Date.now() / 1000) + after;
  const when = at === undefined ? 'later' : `at ${new Date(at * 1000).toISOString().replace('.000Z', 'Z')}`;
  return new Fault('host', `Cannot ask GitHub: its rate limit is used up; it answers again ${when}.`, { hint: HINT });
};

/** The `rel="next"` of a Link header (RFC 8288). */
const nextOf = (link: string | string[] | undefined): string | undefined =>
  /<([^<>]{1,2048})>\s*;[^<]*\brel="next"/.exec(String(link ?? ''))?.[1];

const parse = (bytes: Buffer, from: string): Release[] => {
  try {
    return z
      .array(Release)
      .max(100)
      .parse(JSON.parse(bytes.toString('utf8')));
  } catch (error) {
    throw new Fault('unsupported', `Cannot read the releases at ${from}: that is no answer of GitHub's API.`, {
      cause: error,
    });
  }
};

/** All releases that are neither drafts nor for trial, in the order of the API. */
export const releasesOf = async ({ api, repo }: Repository, options: HttpOptions): Promise<Release[]> => {
  const first = httpsUrl(`${api}/repos/${repo}/releases?per_page=100`);
  const headers = { accept: 'application/vnd.github+json', 'x-github-api-version': '2022-11-28' };
  const found: Release[] = [];
  let url: URL | undefined = first;
  for (let pages = 0; url !== undefined && pages < MAX_PAGES; pages++) {
    const page = await getBytes(url.href, { ...options, headers, explain: rateLimit, max_bytes: PAGE_BYTES });
    found.push(...parse(page.bytes, `${first.origin}${first.pathname}`));
    const next = nextOf(page.headers.link);
    url = next === undefined ? undefined : httpsUrl(next, url);
    if (url !== undefined && url.host !== first.host)
      throw new Fault('unverified', `Cannot list the releases of ${repo}: ${first.host} sends us on to ${url.host}.`);
  }
  return found.filter(release => !release.draft && !release.prerelease);
};
