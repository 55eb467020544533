/** The verbs of images, kernels and archives, with the steps that each of them takes. */
import assert from 'node:assert/strict';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';
import { RELEASE } from './packages.ts';

/** The version under which the kernel is taken once more. */
const OTHER = '9.9.9';

/** What an initramfs holds that was made of damaged files. */
const BAD = 'made of what was damaged';

export const assetVerbs = (ground: () => Ground): readonly Verb[] => {
  const { client, start, started, kernel, taken, rootfs, image } = deeds(ground);
  const initrds = () => join(ground().w.data_dir, 'initrd');
  const ours = () => client().kernel.inspect({ kernel: RELEASE });
  const others = async () => (await client().kernel.list({})).filter(one => one.version === OTHER);
  const fileOf = async (name: string) => join(ground().w.data_dir, 'kernels', (await ours()).id, name);
  /** The files of the kernel are others, and an initramfs is there that was made of them. */
  const spoil = async () => {
    await started();
    await client().vm.delete({ vm: 'vm' });
    for (const name of ['vmlinux', 'modules.cpio']) {
      const path = await fileOf(name);
      const data = await readFile(path);
      await writeFile(path, data.fill(0xff, data.length - 8));
    }
    const made = (await readdir(initrds())).filter(name => name.endsWith('.cpio'));
    assert.equal(made.length, 1);
    for (const name of made) await writeFile(join(initrds(), name), BAD);
  };
  return [
    {
      name: 'image.build',
      // and those of build.trigger
      steps: ['build.programs', 'build.import', 'disk.publish', 'build.insert'],
      run: () => image('other'),
      already: 'exists',
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
      steps: ['asset.fetch', 'asset.land', 'asset.insert'],
      prepare: () => client().kernel.remove({ kernel: RELEASE }),
      run: kernel,
      done: async () => {
        assert.equal((await client().kernel.list({})).length, 1);
        await client().kernel.verify({ kernel: RELEASE });
        await started();
      },
    },
    {
      name: 'kernel.download of what is there as another version',
      steps: ['asset.share'],
      run: async () => taken(await fileOf('vmlinux'), OTHER),
      // where the content could not be shared it is there twice: then the same again changes nothing
      survives: ['asset.share'],
      again: async () => {
        for (const { id } of await others()) await client().kernel.remove({ kernel: id });
        await taken(await fileOf('vmlinux'), OTHER);
      },
      done: async () => {
        const [{ id } = { id: '' }, ...more] = await others();
        assert.deepEqual(more, []);
        await client().kernel.verify({ kernel: id });
        const inode = async (path: string) => (await stat(path)).ino;
        assert.equal(
          await inode(join(ground().w.data_dir, 'kernels', id, 'vmlinux')),
          await inode(await fileOf('vmlinux')),
        );
      },
      clear: async () => {
        for (const { id } of await others()) await client().kernel.remove({ kernel: id });
      },
    },
    {
      name: 'kernel.download of one that was damaged',
      steps: ['mend.forget', 'mend.file', 'mend.beside', 'mend.again'],
      prepare: spoil,
      run: kernel,
      done: async () => {
        assert.equal((await client().kernel.list({})).length, 1);
        await client().kernel.verify({ kernel: RELEASE });
        for (const name of await readdir(initrds()))
          assert.notEqual(await readFile(join(initrds(), name), 'latin1'), BAD);
      },
    },
    {
      name: 'kernel.remove',
      steps: ['asset.record', 'kernel.initrds', 'asset.files'],
      prepare: async () => {
        await started();
        await client().vm.delete({ vm: 'vm' });
      },
      run: () => client().kernel.remove({ kernel: RELEASE }),
      already: 'not_found',
      swept: ['kernel.initrds', 'asset.files'],
      done: async () => assert.deepEqual(await client().kernel.list({}), []),
      clear: kernel,
    },
    {
      name: 'kernel.set_default',
      steps: ['asset.default'],
      run: () => client().kernel.set_default({ kernel: RELEASE }),
      done: async () => {
        assert.equal((await client().kernel.inspect({ kernel: RELEASE })).is_default, true);
        await client().kernel.set_default({ kernel: RELEASE, off: true });
      },
    },
    {
      name: 'provider.update',
      steps: ['provider.write'],
      run: () => client().provider.update({ provider: 'alpine', config: { base: 'https://example.org' } }),
      done: async () =>
        assert.equal((await client().provider.inspect({ provider: 'alpine' })).config.base, 'https://example.org'),
    },
    {
      name: 'rootfs.download',
      // every job takes the first and the last two
      steps: ['job.insert', 'job.temp', 'asset.fetch', 'asset.land', 'asset.insert', 'job.tidy', 'job.end'],
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
      steps: ['asset.record', 'asset.files'],
      run: () => client().rootfs.remove({ rootfs: 'debian:12' }),
      already: 'not_found',
      swept: ['asset.files'],
      done: async () => assert.deepEqual(await client().rootfs.list({}), []),
      clear: rootfs,
    },
  ];
};
