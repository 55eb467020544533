/**
 * Removes what nothing needs.
 *
 * INVARIANTS: never a workspace that has a record, never an image that was imported, built without a template, or is the newest of its
 * template. What was listed is asked about again when its turn comes: whoever came to use it meanwhile keeps it.
 */

import { Fault } from '../api/fault.ts';
import type { GcFailure, GcItem, GcReport } from '../api/gc.ts';
import type { Image } from '../api/image.ts';
import type { Host } from './host.ts';
import { imageSpace, removeImage } from './image_remove.ts';
import { findLeftovers } from './leftovers.ts';

interface Candidate {
  item: GcItem;
  remove(): Promise<void>;
}

export const collect = async (host: Host, dry_run: boolean): Promise<GcReport> => {
  const candidates = [...(await leftovers(host)), ...(await images(host))];
  const { items, failed } = dry_run
    ? { items: candidates.map(one => one.item), failed: [] }
    : await take(host, candidates);
  const freed_bytes = items.reduce((sum, item) => sum + (item.own_bytes ?? 0), 0);
  return { dry_run, items, failed, freed_bytes, ...(await host.disks.room()) };
};

/** One that cannot be removed holds up none of the others. Throws only where nothing went. */
const take = async (host: Host, candidates: readonly Candidate[]): Promise<Pick<GcReport, 'items' | 'failed'>> => {
  const items: GcItem[] = [];
  const failed: GcFailure[] = [];
  const errors: unknown[] = [];
  for (const { item, remove } of candidates) {
    const { kind, name, why } = item;
    try {
      if (!(await unlessUsed(remove))) continue;
      host.log.info({ kind, name, why }, 'removed by gc');
      items.push(item);
    } catch (error) {
      host.log.error({ err: error, kind, name }, 'gc cannot remove what is not needed');
      failed.push({ kind, name, why: error instanceof Error ? error.message : String(error) });
      errors.push(error);
    }
  }
  if (items.length === 0 && errors.length > 0) throw errors[0];
  return { items, failed };
};

/** False if somebody came to use it, or removed it, meanwhile. */
const unlessUsed = async (remove: () => Promise<void>): Promise<boolean> => {
  try {
    await remove();
    return true;
  } catch (error) {
    if (error instanceof Fault && (error.code === 'in_use' || error.code === 'not_found')) return false;
    throw error;
  }
};

const leftovers = async (host: Host): Promise<Candidate[]> =>
  (await findLeftovers(host)).map(({ name, bytes, why, remove }) => ({
    item: { kind: 'leftover', name, why, own_bytes: bytes },
    remove: () => host.step('gc.leftover', remove),
  }));

const images = async (host: Host): Promise<Candidate[]> => {
  const old = (await outdated(host)).filter(({ image }) => host.uses.isFree(image.id));
  const space = await imageSpace(
    host,
    old.map(one => one.image),
  );
  return old.map(({ image, why }, i) => ({
    item: { kind: 'image', name: image.name, why, own_bytes: space[i]?.own_bytes ?? null },
    remove: () => removeImage(host, image, { outdated: true }),
  }));
};

/** Images of templates that have a newer one, and that nothing refers to. */
const outdated = async (host: Host): Promise<{ image: Image; why: string }[]> => {
  const { store } = host;
  const newest = new Map<string, string>();
  const found: { image: Image; why: string }[] = [];
  for (const { image, template_id, template } of await store.imagesOfTemplates()) {
    const by = newest.get(template_id);
    if (by === undefined) newest.set(template_id, image.name);
    else if (!(await store.imageIsNeeded(image.id)))
      found.push({ image, why: `'${by}' is newer of template '${template}', and nothing came from this one` });
  }
  return found;
};
