/** The verbs of a VM, and what its daemon does by itself, with the steps that each of them takes. */
import assert from 'node:assert/strict';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { execResult } from '../../src/client/exec.ts';
import { poll } from '../../src/lib/deadline.ts';
import { isKept, kept, killVmm, until } from './behave.ts';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';
import { RELEASE } from './packages.ts';

/** A guest that says nothing and a VMM that ignores SIGTERM. */
const MUTE = { BOOT_MS: 60_000, STUBBORN: 1 };

export const vmVerbs = (ground: () => Ground): readonly Verb[] => {
  const { w, client, create, start, started, kept: startedAndKept, is, kernel } = deeds(ground);
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
      name: 'a VM that is not yet kept',
      steps: ['start.keeper'],
      prepare: create,
      run: async () => {
        const { id } = await start();
        await poll('its keeper', 20_000, async () => {
          await client().vm.get({ vm: id }); // as long as there is a daemon
          return (await ground().wish()) === '' || (await isKept(w(), id)) || undefined;
        });
      },
      already: 'bad_state',
      survives: ['start.keeper'],
      swept: ['start.keeper'],
      done: async () => kept(w(), (await is('running')()).id),
    },
    {
      name: 'vm.start that fails',
      steps: ['start.failed'],
      prepare: async () => {
        await create();
        await ground().behave({ DIE: 3 });
      },
      run: start,
      second: ['start.failed'],
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
      name: 'vm.stop of one that is kept',
      steps: ['end.keeper'],
      prepare: startedAndKept,
      run: () => client().vm.stop({ vm: 'vm', force: true }),
      already: 'bad_state',
      survives: ['end.keeper'],
      swept: ['end.keeper'],
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
      steps: ['stop.stopping', 'stop.record', 'start.starting'],
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
      },
      run: async () => {
        await killVmm(w(), (await client().vm.get({ vm: 'vm' })).id);
        await is('crashed')(); // until then its kernel is in use
        await client().kernel.remove({ kernel: RELEASE });
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
      makes_room: ['delete.record'],
      done: async () => assert.deepEqual(await client().vm.list({}), []),
    },
  ];
};
