/** What the proof does with a daemon, on a ground that is there when it runs. */
import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import { Fault } from '../../src/api/fault.ts';
import type { Job } from '../../src/api/job.ts';
import type { OpArgs } from '../../src/api/ops.ts';
import type { VmmKind } from '../../src/api/vm.ts';
import type { VmState } from '../../src/api/vm_state.ts';
import { kept, until } from './behave.ts';
import { type Ground, ground } from './ground.ts';
import type { World } from './world.ts';

/** For its first boot. */
type Given = Pick<OpArgs<'vm.create'>, 'files' | 'env' | 'first_boot'>;

const MIB = 1024 * 1024;

/** A job that did not succeed throws as a call does. */
const ended = async (w: World, asked: Promise<Job>): Promise<Job> => {
  const { id } = await asked;
  const job = await w.client.job.wait({ job: id, timeout_ms: 20_000 });
  if (job.state === 'succeeded') return job;
  throw new Fault(job.error?.code ?? 'internal', job.error?.detail ?? job.state);
};

export const deeds = (ground: () => Ground) => {
  const w = (): World => ground().w;
  const client = () => w().client;
  const create = ({
    given,
    ...more
  }: {
    name?: string;
    restart?: 'on-crash';
    auto_start?: boolean;
    given?: Given;
  } = {}) => client().vm.create({ name: 'vm', memory_mib: 64, root_size_bytes: 128 * MIB, ...more, ...given });
  const start = () => client().vm.start({ vm: 'vm', timeout_ms: 10_000 });
  const started = async () => {
    await create();
    return start();
  };
  return {
    w,
    client,
    create,
    start,
    started,
    kept: async () => kept(w(), (await started()).id),
    disk: () => client().ws.create({ name: 'disk', size_bytes: 16 * MIB }),
    is: (state: VmState) => () => until(w(), 'vm', state),
    kernel: () => ended(w(), client().kernel.download({ provider: 'debian' })),
    /** Of a file of this host. */
    taken: (from: string, version: string) => ended(w(), client().kernel.download({ from, version })),
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

/** A ground for all tests of a file, with a kernel, an archive and an image `base`; it is there when they run, and ends after them. */
export const settled = (vmm?: VmmKind): (() => Ground) => {
  let g: Ground | undefined;
  const here = (): Ground => g ?? assert.fail('the ground is not there yet');
  before(async () => {
    g = await ground(vmm);
    await settle(here);
  });
  after(() => g?.[Symbol.asyncDispose]());
  return here;
};
