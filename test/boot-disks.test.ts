/** Disks of a really booted guest: their order, where they are mounted, what is told of those that are not, and growth under its feet. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { run } from '../src/lib/proc.ts';
import { world } from './kit/world.ts';

const MIB = 1024 ** 2;
const SBIN = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C' };

test('data disks are where they were asked for, in their order, and grow while the guest runs', {
  timeout: 600_000,
}, async t => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const { client } = w;
  const sh = async (script: string) => {
    const { stdout, stderr, exit_code } = await execResult(client.exec.run({ vm: 'd', argv: ['sh', '-c', script] }));
    return { out: stdout.toString().trim(), err: stderr.toString().trim(), exit_code };
  };
  /** Bytes that `df` says are in a file system. */
  const room = async (path: string) => Number((await sh(`df -B1 --output=size ${path} | tail -1`)).out);
  await client.vm.create({ name: 'd', memory_mib: 512, root_size_bytes: 1024 * MIB });
  const sizes = { data: 64, archive: 48, raw: 32, empty: 16, above: 24 };
  for (const [name, mib] of Object.entries(sizes))
    await client.ws.create({
      name,
      size_bytes: mib * MIB,
      format: name === 'raw' || name === 'empty' ? 'none' : 'ext4',
    });
  await client.ws.attach({ ws: 'data', vm: 'd', mount: '/srv/new/data' });
  await client.ws.attach({ ws: 'archive', vm: 'd', mount: '/archive', read_only: true });
  await client.ws.attach({ ws: 'raw', vm: 'd' });
  await client.ws.attach({ ws: 'empty', vm: 'd', mount: '/empty' });
  await client.ws.attach({ ws: 'above', vm: 'd', mount: '/srv/new' });
  const started = await client.vm.start({ vm: 'd', timeout_ms: 240_000 });

  await t.test('in the order in which they were attached', async () => {
    const { out } = await sh('for d in b c d e f; do cat /sys/block/vd$d/size /sys/block/vd$d/ro; done');
    const wanted = Object.entries(sizes).flatMap(([name, mib]) => [String(mib * 2048), name === 'archive' ? '1' : '0']);
    assert.deepEqual(out.split('\n'), wanted);
    const { out: label } = await sh('dd if=/dev/vdc bs=1 skip=1144 count=7 2>/dev/null');
    assert.equal(label, 'archive', 'its name is its label');
  });
  await t.test('mounted where asked for, folder or not, and none hides another', async () => {
    const { out } = await sh('grep ^/dev/vd /proc/mounts | cut -d" " -f1-4 | grep -v "^/dev/vda "');
    assert.match(
      out,
      /^\/dev\/vdc \/archive ext4 ro,.*\n\/dev\/vdf \/srv\/new ext4 rw,.*\n\/dev\/vdb \/srv\/new\/data ext4 rw,.*$/,
    );
    assert.equal((await sh('echo kept > /srv/new/data/file; sync; cat /srv/new/data/file')).out, 'kept');
    assert.match((await sh('touch /archive/file')).err, /Read-only file system/);
  });
  await t.test('what cannot be mounted is told, and the guest is ready all the same', async () => {
    const wanted = ['/dev/vde is not mounted on /empty: it holds no ext4 file system'];
    assert.deepEqual([started.guest, started.guest_facts?.problems], ['ready', wanted]);
    assert.deepEqual((await client.vm.inspect({ vm: 'd' })).guest_facts?.problems, wanted);
  });
  await t.test('root and data grow while they are mounted', async () => {
    const [root, data] = [await room('/'), await room('/srv/new/data')];
    const grown = await client.ws.update({ ws: 'd-root', size_bytes: 3072 * MIB });
    assert.deepEqual([grown.file_system, grown.notice], ['grown', undefined]);
    assert.ok((await room('/')) - root > 1900 * MIB, `${root}, then ${await room('/')}`);
    assert.equal((await client.ws.update({ ws: 'data', size_bytes: 512 * MIB })).file_system, 'grown');
    assert.ok((await room('/srv/new/data')) - data > 400 * MIB);
    assert.equal((await sh('cat /srv/new/data/file')).out, 'kept');
    assert.equal((await client.ws.update({ ws: 'raw', size_bytes: 40 * MIB })).file_system, 'not_mounted');
    assert.equal((await sh('cat /sys/block/vdd/size')).out, String(40 * 2048), 'the device has grown');
    const archive = await client.ws.update({ ws: 'archive', size_bytes: 96 * MIB });
    assert.equal(archive.file_system, 'not_mounted');
    assert.match(archive.notice ?? '', /can only read it/);
  });
  await t.test('nobody takes a disk of it away', async () => {
    for (const ws of ['data', 'd-root']) {
      await assert.rejects(client.ws.detach({ ws }), { code: 'bad_state' });
      await assert.rejects(client.ws.remove({ ws }), { code: 'in_use' });
      await assert.rejects(client.ws.snapshot({ ws }), { code: 'bad_state' });
    }
  });
  await t.test(
    'at the next start those behind one that went move up, and what grew meanwhile has its room',
    async () => {
      await client.vm.stop({ vm: 'd' });
      for (const { path, name } of await client.ws.list({}))
        if (name === 'data' || name === 'archive' || name === 'd-root')
          await run(['e2fsck', '-fn', path], { env: SBIN });
      await client.ws.detach({ ws: 'archive' });
      await client.ws.update({ ws: 'data', size_bytes: 1024 * MIB });
      const copy = await client.ws.snapshot({ ws: 'data', name: 'copy' });
      await client.ws.attach({ ws: copy.id, vm: 'd', mount: '/copy', read_only: true });
      await client.vm.start({ vm: 'd', timeout_ms: 240_000 });
      const { out } = await sh('cat /sys/block/vd[b-f]/size; cat /srv/new/data/file /copy/file');
      assert.deepEqual(out.split('\n'), [1024, 40, 16, 24, 1024].map(mib => String(mib * 2048)).concat('kept', 'kept'));
      assert.ok((await room('/srv/new/data')) > 900 * MIB);
    },
  );
  await client.vm.delete({ vm: 'd' });
  const left = (await client.ws.list({})).map(ws => [ws.name, ws.vm_id]).sort();
  assert.deepEqual(
    left,
    [...Object.keys(sizes), 'copy'].sort().map(name => [name, null]),
  );
});
