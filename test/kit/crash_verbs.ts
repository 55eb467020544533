/** The verbs and the steps that each of them takes: what `prove` runs. A new step in src/ gets its place here. */
import assert from 'node:assert/strict';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { DatabaseSync } from 'node:sqlite';
import { Fault } from '../../src/api/fault.ts';
import type { Job } from '../../src/api/job.ts';
import type { VmState } from '../../src/api/vm_state.ts';
import { execResult } from '../../src/client/exec.ts';
import { poll } from '../../src/lib/deadline.ts';
import { killVmm, until, vmmsByVm } from './behave.ts';
import type { Verb } from './crash.ts';
import type { Ground } from './ground.ts';
import { RELEASE } from './packages.ts';
import type { World } from './world.ts';

const MIB = 1024 * 1024;
/** A guest that says nothing and a VMM that ignores SIGTERM. */
const MUTE = { BOOT_MS: 60_000, STUBBORN: 1 };
/** A VMM that never answers, of either kind. */
const SILENT = { HANG: 1, STALL: 'PUT /machine-config' };
const JOB = (...steps: string[]) => ['job.insert', 'job.temp', ...steps, 'job.tidy', 'job.end'];

/** A job that did not succeed throws as a call does. */
const ended = async (w: World, asked: Promise<Job>): Promise<Job> => {
  const { id } = await asked;
  const job = await w.client.job.wait({ job: id, timeout_ms: 20_000 });
  if (job.state === 'succeeded') return job;
  throw new Fault(job.error?.code ?? 'internal', job.error?.detail ?? job.state);
};

/** What the verbs do, on a ground that is there when they run. */
const deeds = (ground: () => Ground) => {
  const w = (): World => ground().w;
  const client = () => w().client;
  const create = (more: { restart?: 'on-crash'; auto_start?: boolean } = {}) =>
    client().vm.create({ name: 'vm', memory_mib: 64, root_size_bytes: 128 * MIB, ...more });
  const start = () => client().vm.start({ vm: 'vm', timeout_ms: 10_000 });
  return {
    w,
    client,
    create,
    start,
    started: async () => {
      await create();
      await start();
    },
    disk: () => client().ws.create({ name: 'disk', size_bytes: 16 * MIB }),
    is: (state: VmState) => () => until(w(), 'vm', state),
    kernel: () => ended(w(), client().kernel.download({})),
    rootfs: () => ended(w(), client().rootfs.download({ distro: 'debian', version: '12' })),
    image: (name: string) => ended(w(), client().image.build({ name, rootfs: 'debian:12' })),
  };
};

/** A kernel, an archive and an image `base`. */
export const settle = async (ground: () => Ground): Promise<void> => {
  const { kernel, rootfs, image } = deeds(ground);
  await kernel();
  await rootfs();
  await image('base');
};

export const vmVerbs = (ground: () => Ground): readonly Verb[] => {
  const { w, client, create, start, started, is, kernel } = deeds(ground);
  return [
    {
      name: 'vm.create',
      steps: ['create.clone', 'disk.publish', 'create.insert'],
      run: () => create(),
      already: 'exists',
      done: start,
    },
    {
      name: 'vm.start',
      steps: [
        ...[
          'start.admit',
          'start.starting',
          'start.dir',
          'start.initrd',
          'start.console',
          'start.spawn',
          'start.process',
        ],
        ...['start.answer', 'start.cont', 'start.running', 'guest.record'],
      ],
      prepare: async () => {
        await create();
        await rm(join(w().data_dir, 'initrd'), { recursive: true });
        await mkdir(join(w().data_dir, 'initrd'));
      },
      run: start,
      already: 'bad_state',
      survives: ['guest.record'],
      done: is('running'),
    },
    {
      name: 'vm.start that fails',
      steps: ['start.failed'],
      prepare: async () => {
        await create();
        await ground().behave({ DIE: 3 });
      },
      run: start,
      again: start,
      done: is('running'),
    },
    {
      name: 'vm.stop',
      steps: ['stop.stopping', 'stop.power', 'stop.letgo', 'stop.record'],
      prepare: started,
      run: () => client().vm.stop({ vm: 'vm', timeout_ms: 5000 }),
      already: 'bad_state',
      survives: ['stop.stopping', 'stop.power'],
      done: is('stopped'),
    },
    {
      name: 'vm.stop of a guest that is silent',
      steps: ['stop.keys', 'stop.term', 'stop.kill'],
      prepare: async () => {
        await create();
        await ground().behave(MUTE);
        await client().vm.start({ vm: 'vm', wait: 'running' });
      },
      run: () => client().vm.stop({ vm: 'vm', timeout_ms: 100 }),
      survives: ['stop.keys'],
      again: () => client().vm.stop({ vm: 'vm', force: true }),
      already: 'bad_state',
      done: is('stopped'),
    },
    {
      name: 'a VMM that is killed',
      steps: ['end.letgo', 'end.record'],
      prepare: started,
      run: async () => {
        assert.ok(await killVmm(w(), (await client().vm.get({ vm: 'vm' })).id));
        await is('crashed')();
      },
      again: is('crashed'),
      survives: ['end.letgo', 'end.record'],
      done: start,
    },
    {
      name: 'vm.pause',
      steps: ['pause.machine', 'pause.record'],
      prepare: started,
      run: () => client().vm.pause({ vm: 'vm' }),
      already: 'bad_state',
      done: is('paused'),
    },
    {
      name: 'vm.resume',
      steps: ['resume.machine', 'resume.record'],
      prepare: async () => {
        await started();
        await client().vm.pause({ vm: 'vm' });
      },
      run: () => client().vm.resume({ vm: 'vm' }),
      already: 'bad_state',
      done: is('running'),
    },
    {
      name: 'a VMM that somebody stops',
      steps: ['pause.found'],
      prepare: started,
      run: async () => {
        process.kill((await client().vm.get({ vm: 'vm' })).pid ?? 0, 'SIGSTOP');
        await is('paused')();
      },
      survives: ['pause.found'],
      again: is('paused'),
      done: () => client().vm.resume({ vm: 'vm' }),
    },
    {
      name: 'vm.restart',
      steps: ['start.admit', 'stop.stopping', 'stop.record', 'start.starting', 'start.running'],
      prepare: started,
      run: () => client().vm.restart({ vm: 'vm' }),
      again: async () => {
        // it is owed, but for one that failed
        const { state } = await poll('its start', 20_000, async () => {
          const vm = await client().vm.get({ vm: 'vm' });
          return vm.state === 'running' || vm.state === 'failed' ? vm : undefined;
        });
        if (state === 'failed') await start();
      },
      survives: ['stop.stopping'],
      done: is('running'),
    },
    {
      name: 'an automatic start that is not possible',
      steps: ['start.refused'],
      prepare: async () => {
        await create({ restart: 'on-crash' });
        await start();
        await client().kernel.remove({ kernel: RELEASE });
      },
      run: async () => {
        await killVmm(w(), (await client().vm.get({ vm: 'vm' })).id);
        await poll('the refusal', 20_000, async () => (await client().vm.get({ vm: 'vm' })).error ?? undefined);
      },
      again: kernel,
      survives: ['start.refused'],
      done: is('running'),
    },
    {
      name: 'vm.stop of one that waits for its restart',
      steps: ['stop.calloff'],
      prepare: async () => {
        await create({ restart: 'on-crash' });
        await start();
        await killVmm(w(), (await client().vm.get({ vm: 'vm' })).id);
        await is('crashed')();
      },
      run: () => client().vm.stop({ vm: 'vm' }),
      already: 'bad_state',
      done: is('stopped'),
    },
    {
      name: 'a guest that goes down while its VMM stays',
      steps: ['end.term', 'end.kill'],
      prepare: async () => {
        await create();
        await ground().behave({ HALT: 1, LAST: 'reboot: Power down', STUBBORN: 1 });
        await start();
        await execResult(client().exec.run({ vm: 'vm', argv: ['sh', '-c', 'kill -HUP $PPID'] })).catch(() => {});
      },
      run: () => until(w(), 'vm', 'stopped', 20_000),
      again: () => client().vm.stop({ vm: 'vm', force: true }),
      already: 'bad_state',
      survives: ['end.term', 'end.kill'],
      done: start,
    },
    {
      name: 'vm.delete',
      steps: ['delete.kill', 'delete.letgo', 'delete.record', 'delete.disk', 'delete.dir'],
      prepare: started,
      run: () => client().vm.delete({ vm: 'vm' }),
      already: 'not_found',
      survives: ['delete.disk', 'delete.dir'],
      swept: ['delete.disk', 'delete.dir'],
      done: async () => assert.deepEqual(await client().vm.list({}), []),
    },
  ];
};

/** A daemon that finds a VMM to adopt, one that died, a stray one, and the work of a job. */
export const bootVerb = (ground: () => Ground): Verb => {
  const { w, client, image } = deeds(ground);
  const ids = new Map<string, string>();
  const vm = async (name: string) => client().vm.get({ vm: name });
  let pid: number | null = null;
  return {
    name: 'a daemon that comes back',
    steps: [
      ...[
        'reconcile.work',
        'reconcile.jobs',
        'reconcile.end',
        'reconcile.sockets',
        'reconcile.record',
        'reconcile.adopt',
      ],
      'reconcile.sweep',
    ],
    prepare: async () => {
      for (const name of ['kept', 'dead', 'half'])
        ids.set(name, (await client().vm.create({ name, memory_mib: 64, root_size_bytes: 128 * MIB })).id);
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
    },
    run: () => w().start(),
    again: async () => {},
    survives: ['reconcile.end', 'reconcile.adopt', 'reconcile.sweep'],
    swept: ['reconcile.end', 'reconcile.adopt', 'reconcile.sweep'],
    done: async () => {
      assert.deepEqual([(await vm('kept')).state, (await vm('kept')).pid], ['running', pid]);
      assert.deepEqual([(await vm('dead')).state, (await vm('half')).state], ['crashed', 'failed']);
      const [job] = await client().job.list({ limit: 1 });
      assert.equal(job?.state, 'interrupted');
      for (const name of ['dead', 'half']) await client().vm.start({ vm: name });
      await client().vm.stop({ vm: 'kept' });
    },
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

export const assetVerbs = (ground: () => Ground): readonly Verb[] => {
  const { client, create, start, started, disk, kernel, rootfs, image } = deeds(ground);
  return [
    {
      name: 'ws.create',
      steps: ['ws.make', 'disk.publish', 'ws.insert'],
      run: () => client().ws.create({ name: 'disk', image: 'base' }),
      already: 'exists',
      done: () => client().ws.get({ ws: 'disk' }),
    },
    {
      name: 'ws.attach',
      steps: ['ws.attach'],
      prepare: async () => {
        await create();
        await disk();
      },
      run: () => client().ws.attach({ ws: 'disk', vm: 'vm' }),
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
      done: async () => assert.equal((await client().ws.get({ ws: 'disk' })).vm_id, null),
    },
    {
      name: 'ws.remove',
      steps: ['ws.record', 'ws.disk'],
      prepare: () => disk(),
      run: () => client().ws.remove({ ws: 'disk' }),
      already: 'not_found',
      swept: ['ws.disk'],
      done: async () => assert.deepEqual(await client().ws.list({}), []),
    },
    {
      name: 'image.build',
      steps: JOB('build.programs', 'build.import', 'disk.publish', 'build.insert'),
      run: () => image('other'),
      already: 'exists',
      survives: ['job.tidy', 'job.end'],
      swept: ['job.tidy'],
      done: () => client().vm.create({ name: 'vm', image: 'other' }).then(start),
      clear: async () => {
        await client().vm.delete({ vm: 'vm' });
        await client().image.remove({ image: 'other' });
      },
    },
    {
      name: 'image.remove',
      steps: ['image.record', 'image.disk'],
      prepare: () => image('other'),
      run: () => client().image.remove({ image: 'other' }),
      already: 'not_found',
      swept: ['image.disk'],
      done: async () =>
        assert.deepEqual(
          (await client().image.list({})).map(i => i.name),
          ['base'],
        ),
    },
    {
      name: 'kernel.download',
      steps: JOB('kernel.fetch', 'kernel.land', 'kernel.insert'),
      prepare: () => client().kernel.remove({ kernel: RELEASE }),
      run: kernel,
      survives: ['job.tidy', 'job.end'],
      swept: ['job.tidy'],
      done: async () => {
        assert.equal((await client().kernel.list({})).length, 1);
        await client().kernel.verify({ kernel: RELEASE });
        await started();
      },
    },
    {
      name: 'kernel.remove',
      steps: ['kernel.record', 'kernel.initrds', 'kernel.files'],
      prepare: async () => {
        await started();
        await client().vm.delete({ vm: 'vm' });
      },
      run: () => client().kernel.remove({ kernel: RELEASE }),
      already: 'not_found',
      swept: ['kernel.initrds', 'kernel.files'],
      done: async () => assert.deepEqual(await client().kernel.list({}), []),
      clear: kernel,
    },
    {
      name: 'rootfs.download',
      steps: JOB('rootfs.fetch', 'rootfs.land', 'rootfs.insert'),
      prepare: () => client().rootfs.remove({ rootfs: 'debian:12' }),
      run: rootfs,
      survives: ['job.tidy', 'job.end'],
      swept: ['job.tidy'],
      done: async () => {
        assert.equal((await client().rootfs.list({})).length, 1);
        await client().rootfs.verify({ rootfs: 'debian:12' });
      },
    },
    {
      name: 'rootfs.remove',
      steps: ['rootfs.record', 'rootfs.files'],
      run: () => client().rootfs.remove({ rootfs: 'debian:12' }),
      already: 'not_found',
      swept: ['rootfs.files'],
      done: async () => assert.deepEqual(await client().rootfs.list({}), []),
      clear: rootfs,
    },
  ];
};
