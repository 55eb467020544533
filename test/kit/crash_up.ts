/** The whole way up to a VM from nothing on disk, with the steps that are most of it. */
import assert from 'node:assert/strict';
import { Fault } from '../../src/api/fault.ts';
import type { Verb } from './crash.ts';
import type { Ground } from './ground.ts';

const ROOTFS = 'alpine:3.21';
const UP = { rootfs: ROOTFS, name: 'vm', memory_mib: 64 };

export const upVerbs = (ground: () => Ground): readonly Verb[] => {
  const client = () => ground().w.client;
  const run = async (): Promise<void> => {
    const { id } = await client().vm.up(UP);
    const { state, error } = await client().job.wait({ job: id, timeout_ms: 60_000 });
    if (state !== 'succeeded') throw new Fault(error?.code ?? 'internal', error?.detail ?? state);
  };
  const kernel = async () => {
    const job = await client().job.wait({ job: (await client().kernel.download({})).id, timeout_ms: 60_000 });
    assert.equal(job.state, 'succeeded', job.error?.detail ?? '');
  };
  /** There is one of each, and the VM answers. */
  const done = async (): Promise<void> => {
    assert.equal((await client().vm.get({ vm: 'vm' })).guest, 'ready');
    const plan = await client().vm.up_plan({ rootfs: ROOTFS, name: 'vm' });
    assert.ok(
      plan.every(step => step.done),
      JSON.stringify(plan),
    );
    const count = await Promise.all([
      ...[client().kernel.list({}), client().rootfs.list({}), client().template.list(), client().image.list()],
      ...[client().ws.list({}), client().vm.list({})],
    ]);
    assert.deepEqual(
      count.map(all => all.length),
      [1, 1, 1, 1, 1, 1],
    );
  };
  const clear = async (): Promise<void> => {
    const { vm, image, template, rootfs, kernel } = client();
    for (const { id } of await vm.list({})) await vm.delete({ vm: id });
    for (const { id } of await image.list()) await image.remove({ image: id });
    for (const { id } of await template.list()) await template.remove({ template: id });
    for (const { id } of await rootfs.list({})) await rootfs.remove({ rootfs: id });
    for (const { id } of await kernel.list({})) await kernel.remove({ kernel: id });
  };
  return [
    { name: 'vm.up with nothing on disk', steps: ['job.insert', 'asset.fetch', 'asset.insert'], run, done, clear },
    {
      name: 'vm.up where a kernel is',
      steps: [
        ...['asset.fetch', 'asset.land', 'template.insert', 'build.inputs', 'build.insert'],
        ...['create.insert', 'start.spawn', 'start.running'],
      ],
      prepare: kernel,
      run,
      done,
      clear,
    },
  ];
};
