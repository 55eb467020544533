/** The verbs of workspaces, with the steps that each of them takes. */
import assert from 'node:assert/strict';
import { mkdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';

const SIZE = 16 * 1024 * 1024;

export const wsVerbs = (ground: () => Ground): readonly Verb[] => {
  const { client, create, start, started, disk } = deeds(ground);
  const leftover = () =>
    join(ground().w.data_dir, 'images', '.img_01k0000000000000000000000a.01234567-89ab-cdef-0123-456789abcdef.part');
  const inspect = (ws: string) => client().ws.inspect({ ws });
  const isLong = async (ws: string, bytes: number) => {
    const { size_bytes, path } = await inspect(ws);
    assert.deepEqual([size_bytes, (await stat(path)).size], [bytes, bytes]);
  };
  return [
    {
      name: 'ws.create',
      steps: ['ws.make', 'disk.publish', 'ws.insert'],
      run: () => client().ws.create({ name: 'disk', image: 'base' }),
      already: 'exists',
      done: () => inspect('disk'),
    },
    {
      name: 'ws.create of an empty disk',
      steps: ['disk.format'],
      run: disk,
      already: 'exists',
      done: () => inspect('disk'),
    },
    {
      name: 'ws.snapshot',
      steps: ['snapshot.make', 'ws.insert'],
      prepare: disk,
      run: () => client().ws.snapshot({ ws: 'disk', name: 'copy' }),
      already: 'exists',
      done: () => isLong('copy', SIZE),
    },
    {
      name: 'ws.update',
      steps: ['grow.file', 'grow.record'],
      prepare: disk,
      run: () => client().ws.update({ ws: 'disk', size_bytes: 2 * SIZE }),
      done: () => isLong('disk', 2 * SIZE),
    },
    {
      name: 'ws.update of a running VM',
      steps: ['grow.machine'],
      prepare: started,
      run: () => client().ws.update({ ws: 'vm-root', size_bytes: 16 * SIZE }),
      survives: ['grow.machine'], // the guest gets it at its next start
      done: () => isLong('vm-root', 16 * SIZE),
    },
    {
      name: 'ws.attach',
      steps: ['ws.attach'],
      prepare: async () => {
        await create();
        await disk();
      },
      run: () => client().ws.attach({ ws: 'disk', vm: 'vm', mount: '/data' }),
      already: 'in_use',
      done: start,
    },
    {
      name: 'ws.detach',
      steps: ['ws.detach'],
      prepare: async () => {
        await create();
        await disk();
        await client().ws.attach({ ws: 'disk', vm: 'vm' });
      },
      run: () => client().ws.detach({ ws: 'disk' }),
      already: 'bad_state',
      done: async () => assert.equal((await inspect('disk')).vm_id, null),
    },
    {
      name: 'daemon.gc',
      // an image goes by the steps of image.remove
      steps: ['gc.leftover'],
      prepare: async () => {
        await mkdir(leftover());
        await writeFile(join(leftover(), 'disk.raw'), 'x');
      },
      run: () => client().daemon.gc({}),
      swept: ['gc.leftover'],
      done: async () => assert.deepEqual((await client().daemon.gc({ dry_run: true })).items, []),
    },
    {
      name: 'ws.remove',
      steps: ['ws.record', 'ws.disk'],
      prepare: disk,
      run: () => client().ws.remove({ ws: 'disk' }),
      already: 'not_found',
      swept: ['ws.disk'],
      done: async () => assert.deepEqual(await client().ws.list({}), []),
    },
  ];
};
