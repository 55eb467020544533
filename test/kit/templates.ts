/** What tests of templates and builds do with a daemon, on a ground that is there when they run. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { Build } from '../../src/api/build.ts';
import type { Image, ImageInspect } from '../../src/api/image.ts';
import type { Job } from '../../src/api/job.ts';
import { poll } from '../../src/lib/deadline.ts';
import { run } from '../../src/lib/proc.ts';
import { type Ground, truthful } from './ground.ts';

/** Of e2fsprogs, which are not in everybody's PATH. */
export const SBIN = `${process.env.PATH}:/usr/sbin:/sbin`;

export const templateDeeds = (ground: () => Ground) => {
  const client = () => ground().w.client;

  /** A build, when it has ended. */
  const ended = (build: { id: string }): Promise<Build> =>
    poll(`the end of ${build.id}`, 240_000, async () => {
      const now = await client().build.inspect({ build: build.id });
      return now.state === 'building' ? undefined : now;
    });

  const built = async (template: string): Promise<{ build: Build; image: ImageInspect }> => {
    const build = await ended(await client().build.trigger({ template }));
    assert.equal(build.state, 'success', build.error?.detail ?? '');
    return { build, image: await client().image.inspect({ image: build.image_id ?? '' }) };
  };

  /** A job, when it has ended. */
  const job = async (asked: Promise<Job>): Promise<Job> =>
    client().job.wait({ job: (await asked).id, timeout_ms: 60_000 });

  const debugfs = async (image: Pick<Image, 'id'>, request: string): Promise<string> => {
    const disk = join(ground().w.data_dir, 'images', image.id, 'disk.raw');
    return (await run(['debugfs', '-R', request, disk], { env: { ...process.env, PATH: SBIN } })).stdout;
  };

  /** Removes what a test has made; what others build on comes last. */
  const clear = async (): Promise<void> => {
    for (const vm of await client().vm.list({})) await client().vm.delete({ vm: vm.id });
    for (let round = 0; round < 3; round++) {
      for (const { id } of await client().template.list())
        await client()
          .template.remove({ template: id })
          .catch(() => {});
      for (const { id, name } of await client().image.list())
        if (name !== 'base')
          await client()
            .image.remove({ image: id })
            .catch(() => {});
    }
    assert.deepEqual([(await client().template.list()).length, (await client().image.list()).length], [0, 1]);
    assert.deepEqual(await truthful(ground().w), []);
  };

  return { client, ended, built, job, debugfs, clear };
};
