/** The verbs of templates, builds and files of images, with the steps that each of them takes. */
import assert from 'node:assert/strict';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Fault } from '../../src/api/fault.ts';
import type { Job } from '../../src/api/job.ts';
import { poll } from '../../src/lib/deadline.ts';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';
import { templateDeeds } from './templates.ts';

const SOURCE = 'debian:12';
/** A folder that is not the daemon's. */
const DIR = join(tmpdir(), `nexus-crash-${process.pid}`);
const FILE = join(DIR, 'base.raw');

export const buildVerbs = (ground: () => Ground): readonly Verb[] => {
  const { client, start } = deeds(ground);
  const { ended, clear, job } = templateDeeds(ground);
  const template = () => client().template.create({ name: 'tpl', source: SOURCE });
  const trigger = () => client().build.trigger({ template: 'tpl' });
  /** What did not succeed throws as a call does. */
  const good = async (build: { id: string }): Promise<void> => {
    const { state, error } = await ended(build);
    if (state !== 'success') throw new Fault(error?.code ?? 'internal', error?.detail ?? state);
  };
  const done = async (asked: Promise<Job>): Promise<void> => {
    const { state, error } = await job(asked);
    if (state !== 'succeeded') throw new Fault(error?.code ?? 'internal', error?.detail ?? state);
  };
  const three = async () => [await trigger(), await trigger(), await trigger()];
  const boots = () => client().vm.create({ name: 'vm', image: 'tpl', memory_mib: 64 }).then(start);
  return [
    {
      name: 'template.create',
      steps: ['template.insert'],
      run: template,
      already: 'exists',
      done: async () => assert.equal((await client().template.list()).length, 1),
      clear,
    },
    {
      name: 'template.update',
      steps: ['template.update'],
      prepare: template,
      run: () => client().template.update({ template: 'tpl', environment: { A: '1' } }),
      done: async () => assert.equal((await client().template.inspect({ template: 'tpl' })).version, 2),
      clear,
    },
    {
      name: 'template.remove',
      steps: ['template.remove'],
      prepare: template,
      run: () => client().template.remove({ template: 'tpl' }),
      already: 'not_found',
      done: async () => assert.deepEqual(await client().template.list(), []),
      clear,
    },
    {
      name: 'build.trigger',
      // and those of image.build
      steps: ['build.record', 'build.source', 'build.inputs', 'build.insert'],
      prepare: template,
      run: async () => good(await trigger()),
      done: boots,
      clear,
    },
    {
      name: 'build.trigger while others are built',
      steps: ['job.begin'],
      prepare: template,
      run: async () => {
        for (const build of await three()) await good(build);
      },
      done: boots,
      clear,
    },
    {
      name: 'build.cancel',
      steps: ['build.end'],
      prepare: template,
      run: async () => {
        const [first, second, third] = await three();
        await client().build.cancel({ build: third?.id ?? '' });
        for (const build of [first, second]) await good(build ?? { id: '' });
      },
      survives: ['build.end'], // it is written later
      done: async () => {
        await poll('the end of all builds', 20_000, async () => {
          const open = await client().build.list({ state: 'building' });
          return open.length === 0 || undefined;
        });
        assert.ok((await client().build.list({})).some(build => build.state === 'canceled'));
      },
      clear,
    },
    {
      name: 'image.import',
      steps: ['import.copy', 'import.insert'],
      prepare: async () => {
        await mkdir(DIR);
        await done(client().image.export({ image: 'base', to: FILE }));
      },
      run: () => done(client().image.import({ name: 'back', from: FILE })),
      already: 'exists',
      done: () => client().vm.create({ name: 'vm', image: 'back', memory_mib: 64 }).then(start),
      clear: async () => {
        await clear();
        await rm(DIR, { recursive: true });
      },
    },
    {
      name: 'image.export',
      steps: ['job.outside', 'export.copy', 'export.link'],
      prepare: () => mkdir(DIR),
      run: () => done(client().image.export({ image: 'base', to: FILE })),
      already: 'exists',
      done: async () => {
        assert.deepEqual(await readdir(DIR), ['base.raw']);
        await done(client().image.import({ name: 'back', from: FILE }));
      },
      clear: async () => {
        await clear();
        await rm(DIR, { recursive: true });
      },
    },
    {
      name: 'vm.up',
      // all of its way: crash_up.ts
      steps: ['build.insert'],
      run: () => done(client().vm.up({ rootfs: SOURCE, name: 'vm', memory_mib: 64 })),
      done: async () => assert.equal((await client().vm.get({ vm: 'vm' })).guest, 'ready'),
      clear,
    },
  ];
};
