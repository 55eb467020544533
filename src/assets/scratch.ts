/**
 * Folders for programs that become root in a user namespace: such a root has to reach them, so they are in the system's temporary
 * folder, and what it leaves in them only such a root can remove. One whose maker was killed is found by the name of its owner.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runAny } from '../lib/proc.ts';

/** Becomes root in a user namespace, with the caller's range of IDs. */
export const MAPPED = ['unshare', '--user', '--map-root-user', '--map-auto'];

const REMOVE_MS = 120_000;

const prefixOf = (owner: string): string =>
  `nexus-rootfs-${createHash('sha256').update(owner).digest('hex').slice(0, 16)}-`;

/** `owner`: a path that is its maker's alone. */
export const makeScratch = async (owner: string): Promise<string> => {
  const path = await mkdtemp(join(tmpdir(), prefixOf(owner)));
  await chmod(path, 0o711);
  return path;
};

export const removeScratch = async (path: string): Promise<void> => {
  await runAny([...MAPPED, 'rm', '-rf', '--', path], { timeout_ms: REMOVE_MS });
  await rm(path, { recursive: true, force: true });
};

/** Removes what killed makers left; gives the paths. Nobody of this owner may be at work. */
export const sweepScratch = async (owner: string): Promise<string[]> => {
  const gone: string[] = [];
  for (const name of await readdir(tmpdir())) {
    if (!name.startsWith(prefixOf(owner))) continue;
    await removeScratch(join(tmpdir(), name));
    gone.push(join(tmpdir(), name));
  }
  return gone;
};
