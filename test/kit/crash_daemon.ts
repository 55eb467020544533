/** Starts of a daemon that finds something, with the steps that they take. */
import assert from 'node:assert/strict';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { poll } from '../../src/lib/deadline.ts';
import { endKeepers, kept, killVmm, vmmsByVm } from './behave.ts';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';
import type { World } from './world.ts';

/** A VMM that never answers, of either kind. */
const SILENT = { HANG: 1, STALL: 'PUT /machine-config' };

/** A daemon that finds all in order. */
export const seedVerb = (ground: () => Ground): Verb => {
  const { w, client } = deeds(ground);
  return {
    name: 'a daemon that starts',
    steps: ['provider.seed'],
    prepare: () => w().stop(),
    run: () => w().start(),
    again: async () => {},
    done: async () => assert.equal((await client().provider.list({})).length, 5),
  };
};

/** A daemon that finds a VMM to adopt, one that died, a stray one, and the work of a job. */
export const bootVerb = (ground: () => Ground): Verb => {
  const { w, client, create, image } = deeds(ground);
  const ids = new Map<string, string>();
  const vm = async (name: string) => client().vm.get({ vm: name });
  let pid: number | null = null;
  return {
    name: 'a daemon that comes back',
    steps: [
      ...[
        'reconcile.work',
        'reconcile.jobs',
        'reconcile.builds',
        'reconcile.end',
        'reconcile.sockets',
        'reconcile.record',
        'reconcile.adopt',
      ],
      ...['start.keeper', 'reconcile.sweep'],
    ],
    prepare: async () => {
      for (const name of ['kept', 'dead', 'half']) ids.set(name, (await create({ name })).id);
      pid = (await client().vm.start({ vm: 'kept' })).pid;
      await client().vm.start({ vm: 'dead' });
      await ground().behave(SILENT);
      await client().vm.start({ vm: 'half', wait: 'none' });
      await poll('the third VMM', 10_000, async () => (await vmmsByVm(w())).size === 3 || undefined);
      await ground().behave();
      await ground().fault('die after:job.temp');
      await image('cut').catch(() => {});
      await w().ended();
      assert.ok(await killVmm(w(), ids.get('dead') ?? ''));
      await endKeepers(w(), [...ids.values()]);
    },
    run: () => w().start(),
    again: async () => {},
    survives: ['reconcile.end', 'reconcile.adopt', 'start.keeper', 'reconcile.sweep'],
    swept: ['reconcile.end', 'reconcile.adopt', 'start.keeper', 'reconcile.sweep'],
    done: async () => {
      assert.deepEqual([(await vm('kept')).state, (await vm('kept')).pid], ['running', pid]);
      await kept(w(), ids.get('kept') ?? '');
      assert.deepEqual([(await vm('dead')).state, (await vm('half')).state], ['crashed', 'failed']);
      const [job] = await client().job.list({ limit: 1 });
      assert.equal(job?.state, 'interrupted');
      for (const name of ['dead', 'half']) await client().vm.start({ vm: name });
      await client().vm.stop({ vm: 'kept' });
    },
  };
};

/** A daemon that finds a keeper which nobody told to end, and which cannot be told any more. */
export const keeperVerb = (ground: () => Ground): Verb => {
  const { w, client, kept, is } = deeds(ground);
  return {
    name: 'a daemon that finds a keeper',
    steps: ['reconcile.keeper'],
    prepare: async () => {
      await kept();
      await ground().fault('die before:end.keeper');
      await client()
        .vm.stop({ vm: 'vm' })
        .catch(() => {}); // its connection is cut
      await w().ended();
      for (const id of await readdir(join(w().data_dir, 'vms'))) await rm(join(w().data_dir, 'vms', id, 'run/keeper'));
    },
    run: () => w().start(),
    again: async () => {},
    survives: ['reconcile.keeper'],
    swept: ['reconcile.keeper'],
    done: is('stopped'),
  };
};

/** The records say another boot of the host; no daemon runs. */
const hostRestarted = (w: World): void => {
  const db = new DatabaseSync(join(w.data_dir, 'state.db'));
  db.prepare("update notes set value = '00000000-0000-0000-0000-000000000000' where name = 'boot_id'").run();
  db.close();
};

/** A daemon that finds its host started again, and a VM that starts with it. */
export const hostVerb = (ground: () => Ground): Verb => {
  const { w, create, is } = deeds(ground);
  return {
    name: 'the start of a host',
    steps: ['reconcile.owe', 'reconcile.boot'],
    prepare: async () => {
      await create({ auto_start: true });
      await w().stop();
      hostRestarted(w());
    },
    run: async () => {
      await w().start();
      await is('running')();
    },
    again: is('running'),
    done: is('running'),
  };
};
