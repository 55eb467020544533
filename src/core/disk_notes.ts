/**
 * Disks on their way to a record, and from one.
 *
 * INVARIANTS: a whole disk without a record that work of this state left has a note from before it had its name until it is gone. So a
 * start removes no other: a state that was put back from a copy does not know the disks that were made since. One that was being made
 * just when the copy was taken has its note there, and goes.
 */
import { dirname } from 'node:path';
import type { DiskKind, Known } from '../disk/disk.ts';
import { exists } from '../lib/files.ts';
import type { Host } from './host.ts';

const kindOf = (id: string): DiskKind => (id.startsWith('img_') ? 'images' : 'workspaces');

/** A note too many is harmless: the next start takes it. */
const forget = (host: Host, id: string): Promise<void> => host.store.forgetDisk(id).catch(() => {});

/** Makes a disk that gets its record later. */
export const makeDisk = async (host: Host, id: string, make: () => Promise<string>): Promise<string> => {
  await host.store.noteDisk(id);
  try {
    return await make();
  } catch (error) {
    if (!(await exists(dirname(host.disks.path(kindOf(id), id))))) await forget(host, id);
    throw error;
  }
};

/** Removes a disk that has no record, or none any more. */
export const removeDisk = async (host: Host, id: string): Promise<void> => {
  await (kindOf(id) === 'images' ? host.disks.removeImage(id) : host.disks.removeWs(id));
  await forget(host, id);
};

/** At a start: what this state knows as left over goes; what it does not know is told. */
export const sweepDisks = async (host: Host, known: Known): Promise<string[]> => {
  const noted = await host.store.notedDisks();
  const gone = await host.disks.sweep(known, new Set(noted));
  for (const id of noted) await host.store.forgetDisk(id);
  const kept = (await host.disks.leftovers(known)).map(one => one.name);
  if (kept.length > 0)
    host.log.warn({ kept }, 'disks that no record knows stay: nexusctl gc --dry-run shows them, gc removes them');
  return gone;
};
