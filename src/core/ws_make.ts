/** New workspaces: a disk first, then its record. */
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { OpIn } from '../api/ops.ts';
import type { Workspace } from '../api/ws.ts';
import { diskLength, formatBytes } from '../lib/size.ts';
import { makeDisk, removeDisk } from './disk_notes.ts';
import { needImage } from './find.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { useAsset } from './using.ts';

/** A full copy of a large image on a slow disk. */
export const CLONE_MS = 600_000;

/** The name that was chosen, or one made of the ID. */
export const freeName = async (host: Host, id: string, name: string | undefined): Promise<string> => {
  if (name === undefined) return id.replace('_', '-');
  if ((await host.store.findWs(name)) !== undefined) throw new Fault('exists', `Workspace '${name}' exists already.`);
  return name;
};

/** Before anything is copied. `what` completes "Cannot create …". */
export const refuseTooSmall = (what: string, image: Image, size_bytes: number): void => {
  if (size_bytes >= image.size_bytes) return;
  const [wish, has] = [size_bytes, image.size_bytes].map(formatBytes);
  const why = `image '${image.name}' has ${has}, and disks do not shrink`;
  throw new Fault('invalid', `Cannot create ${what} with ${wish}: ${why}.`);
};

export const createWs = async (host: Host, input: OpIn<'ws.create'>): Promise<Workspace> => {
  const id = newId('ws');
  const name = await freeName(host, id, input.name);
  const image = input.image === undefined ? null : await needImage(host, input.image);
  if (image !== null && input.format !== undefined) {
    throw new Fault('invalid', 'A clone of an image has the file system of that: --format is for an empty disk.');
  }
  const wanted = input.size_bytes ?? image?.size_bytes;
  if (wanted === undefined) {
    throw new Fault('invalid', 'Cannot create an empty workspace: its size is missing.', {
      hint: 'give --size, e.g. --size 8G',
    });
  }
  if (image !== null) refuseTooSmall(`workspace '${name}'`, image, wanted);
  const size_bytes = diskLength(wanted);
  const label = input.format === 'none' ? undefined : name;
  using _making = host.uses.use(id);
  using _used = image === null ? undefined : await useAsset(host, image, needImage);
  const deadline = AbortSignal.any([AbortSignal.timeout(CLONE_MS), host.closing]);
  await host.step('ws.make', () =>
    makeDisk(host, id, () =>
      image === null
        ? host.disks.empty(id, size_bytes, deadline, label)
        : host.disks.clone(image.id, id, size_bytes, deadline),
    ),
  );
  return insertWs(host, { ...blankWs(id, name, size_bytes), image_id: image?.id ?? null });
};

/** One that belongs to nobody and comes from nothing. */
export const blankWs = (id: string, name: string, size_bytes: number): Workspace => ({
  ...{ id, name, size_bytes, image_id: null, source_ws_id: null },
  ...{ vm_id: null, role: null, position: null, mount: null, read_only: false, owned: false },
  created_at_ms: Date.now(),
});

/** The record of a disk that is there; without it the disk goes. */
export const insertWs = async (host: Host, ws: Workspace): Promise<Workspace> => {
  try {
    await host.step('ws.insert', () => host.store.insertWs(ws));
    return ws;
  } catch (error) {
    await removeDisk(host, ws.id);
    throw error;
  }
};
