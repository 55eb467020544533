/** A disk that is really full: builds, imports, downloads and exports end with `no_room`, leave nothing, and succeed when there is room. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Job } from '../src/api/job.ts';
import { rejects } from './kit/behave.ts';
import { settle } from './kit/crash_deeds.ts';
import { ground } from './kit/ground.ts';
import { loopFs } from './kit/loop-fs.ts';
import { archive } from './kit/tar.ts';
import { templateDeeds } from './kit/templates.ts';

const MIB = 1024 * 1024;

test('a disk that fills up at any point of a build: no_room, nothing is left, and with room it goes on', {
  timeout: 300_000,
}, async t => {
  const fs = await loopFs('ext4', 96);
  if (typeof fs === 'string') return t.skip(fs);
  await using mounted = fs;
  const dir = await mkdtemp(join(tmpdir(), 'nexus-full-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  await using g = await ground('qemu', { parent: mounted.dir });
  const { client, ended, built, job, clear } = templateDeeds(() => g);
  await settle(() => g);
  const ballast = join(mounted.dir, 'ballast');
  const leave = async (bytes: number) => {
    await rm(ballast, { force: true });
    const { bavail, bsize } = await statfs(mounted.dir);
    // the last blocks go for what the file system has to note of it
    await writeFile(ballast, Buffer.alloc(Math.max(0, bavail * bsize - bytes))).catch(error =>
      assert.equal(error.code, 'ENOSPC'),
    );
  };
  const tar = join(dir, 'large.tar');
  await writeFile(
    tar,
    archive(
      { name: 'etc/', type: '5', mode: 0o755 },
      { name: 'large', data: Buffer.alloc(12 * MIB, 'x') },
      { name: 'cafe', pax: [['path', 'cafe\u0301']] }, // no mke2fs takes this name from an archive as it is
    ),
  );
  await client().template.create({ name: 'tpl', source: tar });
  const { image } = await built('tpl');
  const file = join(dir, 'large.raw');
  assert.equal((await job(client().image.export({ image: image.id, to: file }))).state, 'succeeded');
  await clear();
  const forget = async () => {
    for (const { id, distro } of await client().rootfs.list({}))
      if (distro === 'large') await client().rootfs.remove({ rootfs: id });
  };
  await forget();

  const full = (what: string, { state, error }: Pick<Job, 'error'> & { state: string }) => {
    t.diagnostic(`${what}: ${error?.detail}`);
    assert.deepEqual([state, error?.code], ['failed', 'no_room'], `${what}: ${error?.detail}`);
    assert.match(error?.detail ?? '', /full|free/);
  };
  for (const mib of [4, 16, 26]) {
    await client().template.create({ name: 'tpl', source: tar });
    await leave(mib * MIB);
    full(`a build with ${mib} MiB left`, await ended(await client().build.trigger({ template: 'tpl' })));
    if (mib < 16)
      full(`an import with ${mib} MiB left`, await job(client().image.import({ name: 'large', from: file })));
    await rm(ballast);
    await clear();
    await forget();
  }
  await leave(0);
  await rejects(client().template.create({ name: 'tpl', source: tar }), 'no_room', /full/);
  await rejects(client().build.trigger({ template: 'tpl' }), 'not_found');
  await rm(ballast);
  await client().template.create({ name: 'tpl', source: tar });
  await built('tpl');
  // room for its content once, but through a directory it is there twice: refused before it is written
  await leave(20 * MIB);
  const again = await ended(await client().build.trigger({ template: 'tpl' }));
  full('a build by tree', again);
  assert.match(
    again.error?.detail ?? '',
    /^Cannot build image '.*': it takes 2\d\.\d MiB and 1\.\d MiB is kept in reserve,/,
  );
  await rm(ballast);
  await clear();
});
