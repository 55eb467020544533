/** From the name of a root file system to a VM that answers, by one command: everything between is downloaded, built, made and started. */
import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { alpineRootfs, noBusybox } from './kit/busybox.ts';
import { alpine } from './kit/layouts.ts';
import { openSources, sourced } from './kit/sources.ts';
import type { World } from './kit/world.ts';

/** Every file of the data directory but what a running daemon writes by itself, with its length and time. */
const files = async ({ data_dir }: World): Promise<string[]> => {
  const all = await readdir(data_dir, { recursive: true });
  const lines = all
    .filter(name => !/^(state\.db|nexusd\.)/.test(name))
    .map(async name => {
      const { size, mtimeMs } = await stat(join(data_dir, name));
      return `${name} ${size} ${mtimeMs}`;
    });
  return (await Promise.all(lines)).sort();
};

/** The rows of a table on stdout, each as its first columns. */
const steps = (stdout: string): string[] =>
  stdout
    .trim()
    .split('\n')
    .slice(1)
    .map(line => line.split(/ {2,}/).slice(0, 3).join(' '));

const STEPS = ['kernel', 'rootfs', 'template', 'image', 'vm', 'start'];
const done = (is: (what: string) => boolean) => STEPS.map((what, n) => `${n + 1} ${what} ${is(what) ? 'yes' : 'no'}`);

test('nexusctl up --rootfs alpine:3.21: a VM of what Alpine publishes, where there was nothing but a kernel', {
  timeout: 600_000,
}, async t => {
  const why = await noBusybox();
  if (why !== undefined) return t.skip(why);
  await using sources = await openSources();
  const archive = gzipSync(await alpineRootfs('3.21.7'));
  alpine(sources.mirror, 'x86_64', [['3.21.7', archive]]);
  await using w = await sourced(sources, { qemu: 'real', seed: 'booted' });
  for (const { id } of await w.client.image.list()) await w.client.image.remove({ image: id });
  for (const { id } of await w.client.rootfs.list({})) await w.client.rootfs.remove({ rootfs: id });

  const up = (...more: string[]) => w.ctl('up', '--rootfs', 'alpine:3.21', '--memory', '512M', ...more);
  const before = [await files(w), sources.mirror.seen.length];
  const planned = await up('--dry-run');
  assert.equal(planned.code, 0, planned.stderr);
  assert.deepEqual(
    steps(planned.stdout),
    done(what => what === 'kernel'),
  );
  assert.deepEqual([await files(w), sources.mirror.seen.length], before, 'nothing was asked for and nothing written');
  assert.deepEqual([await w.client.template.list(), await w.client.vm.list({})], [[], []]);

  const from = performance.now();
  const went = await up();
  assert.equal(went.code, 0, went.stderr);
  t.diagnostic(`up after ${Math.round(performance.now() - from)} ms`);
  const exec = await w.ctl('exec', 'alpine-3.21', '--', 'sh', '-c', 'cat /etc/alpine-release; id -u; hostname; exit 3');
  assert.deepEqual([exec.code, exec.stdout], [3, '3.21.7\n0\nalpine-3.21\n'], exec.stderr);
  const again = await up('--dry-run');
  assert.deepEqual(
    steps(again.stdout),
    done(() => true),
  );

  // what it comes from, from the disk down to the archive
  const vm = await w.client.vm.inspect({ vm: 'alpine-3.21' });
  const [root] = vm.disks;
  const ws = await w.client.ws.inspect({ ws: root?.ws_id ?? '' });
  const build = await w.client.build.inspect({ build: vm.image?.build?.id ?? '' });
  assert.deepEqual([ws.image_id, build.image_id], [vm.image?.id, vm.image?.id]);
  assert.deepEqual([build.template_id, build.rootfs_id], [vm.image?.template?.id, vm.image?.rootfs?.id]);
  const { rootfs } = vm.image ?? {};
  assert.deepEqual([rootfs?.provider, rootfs?.proofs, rootfs?.version], ['alpine', ['sha256'], '3.21.7']);
  assert.match(vm.guest_facts?.os ?? '', /^Alpine Linux v3\.21$/);
  const seen = await w.ctl('vm', 'inspect', 'alpine-3.21');
  for (const line of [
    /^image +alpine-3\.21-v1-\w{6}: Alpine Linux v3\.21, x86_64, init busybox, agent /m,
    new RegExp(`^build +${build.id} of rootfs alpine:3\\.21$`, 'm'),
    new RegExp(`^template +alpine-3\\.21, version 1, ${build.template_id}$`, 'm'),
    new RegExp(`^rootfs +alpine:3\\.21\\.7, ${rootfs?.id}$`, 'm'),
    /^ +https:\S+alpine-minirootfs-3\.21\.7-x86_64\.tar\.gz \(sha256\)$/m,
    /^guest +Alpine Linux v3\.21, Linux 6\.\S+, host name alpine-3\.21$/m,
    /^alpine-3\.21-root +root /m,
  ])
    assert.match(seen.stdout, line);
  assert.equal(sources.asked('.tar.gz'), 1, 'one archive was fetched');
  assert.equal((await w.client.vm.stop({ vm: 'alpine-3.21' })).last_exit?.reason, 'The guest shut down.');
});
