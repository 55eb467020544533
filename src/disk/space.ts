/** What disks take of their file system, and what of that they share. */
import { lstat } from 'node:fs/promises';
import { z } from 'zod';
import type { Space } from '../api/common.ts';
import { run } from '../lib/proc.ts';

/** For all together: a disk of very many pieces takes its time on btrfs, which looks for the owners of each. */
const ASK_MS = 5000;
/** Far below what a command line takes. */
const AT_ONCE = 500;

/** In the order of the arguments; null: that file could not be looked at. */
const Extents = z.array(z.object({ used_bytes: z.int().min(0), shared_bytes: z.int().min(0) }).nullable());

const UNKNOWN: Space = { used_bytes: null, own_bytes: null, shared_bytes: null };

/** Asks the host's probe, which reads the extents of the files (FIEMAP). What is not known is null. */
export const askSpace = async (probe: string, paths: readonly string[]): Promise<Space[]> => {
  const found: Space[] = [];
  const signal = AbortSignal.timeout(ASK_MS);
  for (let at = 0; at < paths.length; at += AT_ONCE) {
    const some = paths.slice(at, at + AT_ONCE);
    const said = await run([probe, 'extents', ...some], { signal })
      .then(({ stdout }) => Extents.parse(JSON.parse(stdout)))
      .catch(() => []);
    for (const [i] of some.entries()) {
      const one = said[i];
      if (one === null || one === undefined) found.push(UNKNOWN);
      else found.push({ ...one, own_bytes: one.used_bytes - one.shared_bytes });
    }
  }
  return found;
};

/** Where nothing can share blocks. */
export const plainSpace = (paths: readonly string[]): Promise<Space[]> =>
  Promise.all(
    paths.map(async path => {
      const stat = await lstat(path).catch(() => undefined);
      if (stat === undefined) return UNKNOWN;
      const used_bytes = stat.blocks * 512;
      return { used_bytes, own_bytes: used_bytes, shared_bytes: 0 };
    }),
  );
