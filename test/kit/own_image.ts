/** An image of a test's own make in a world, as if it had been built there. */
import { stat } from 'node:fs/promises';
import type { InitMode } from '../../src/api/image.ts';
import { pickDisks } from '../../src/disk/pick.ts';
import { sha256File } from '../../src/lib/files.ts';
import { silentLog } from '../../src/lib/log.ts';
import { openStore } from '../../src/store/open.ts';
import type { World } from './world.ts';

const ID = 'img_01h455vb4pex5vsknk084sn02q';

/** The daemon is stopped meanwhile. */
export const addImage = async (w: World, file: string, name: string, init: InitMode): Promise<void> => {
  await w.stop();
  const disks = await pickDisks(w.data_dir, silentLog());
  await disks.importImage(file, ID, AbortSignal.timeout(60_000));
  await using store = await openStore(w.data_dir);
  await store.insertImage({
    id: ID,
    name,
    arch: 'x86_64',
    init,
    os: 'a test',
    build_id: null,
    rootfs_id: null,
    agent_version: '0',
    warning: null,
    sha256: await sha256File(file),
    size_bytes: (await stat(file)).size,
    created_at_ms: Date.now(),
  });
  await store[Symbol.asyncDispose]();
  await w.start();
};
