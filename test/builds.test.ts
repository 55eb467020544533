/** Builds, and images that come from files: their turns, their ends, and the whole way up to a VM. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { BuildItem } from '../src/api/build.ts';
import type { JobMessage } from '../src/api/job.ts';
import { poll } from '../src/lib/deadline.ts';
import { sha256File } from '../src/lib/files.ts';
import { procsWithEnv } from '../src/lib/marked.ts';
import { run } from '../src/lib/proc.ts';
import { rejects } from './kit/behave.ts';
import { settle } from './kit/crash_deeds.ts';
import { type Ground, ground, truthful } from './kit/ground.ts';
import { archive } from './kit/tar.ts';
import { SBIN, templateDeeds } from './kit/templates.ts';
import { world } from './kit/world.ts';

let g: Ground;
let dir: string;
const { client, ended, built, job, debugfs, clear } = templateDeeds(() => g);
const SOURCE = 'debian:12';

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-templates-'));
  g = await ground();
  await settle(() => g);
});
after(async () => {
  await g[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

test('so many builds at once; the others wait; each can be canceled; the daemon that ends fails them', async () => {
  await client().template.create({ name: 'tpl', source: SOURCE });
  const jobOf = async (build: BuildItem) => (await client().job.get({ job: build.job_id })).state;
  const four: BuildItem[] = [];
  for (let n = 0; n < 4; n++) four.push(await client().build.trigger({ template: 'tpl' }));
  const states = await Promise.all(four.map(jobOf));
  const [a, b, c, d] = four;
  assert.ok(a && b && c && d);
  assert.ok(states.filter(s => s === 'running').length <= 2 && states[3] === 'queued', states.join(' '));
  await rejects(client().template.remove({ template: 'tpl' }), 'in_use', /build 'bld_.*' of it runs/);
  assert.equal((await client().build.cancel({ build: d.id })).state, 'canceled');
  const canceled = await client()
    .build.cancel({ build: b.id })
    .then(
      build => build.state,
      error => error.code,
    );
  assert.ok(['canceled', 'bad_state'].includes(canceled), canceled);
  for (const build of [a, c]) assert.equal((await ended(build)).state, 'success');
  await rejects(client().build.cancel({ build: a.id }), 'bad_state', /it is success/);
  assert.deepEqual((await client().build.inspect({ build: d.id })).error?.code, 'canceled');
  const lines: JobMessage[] = [];
  for await (const message of client().build.logs({ build: d.id })) lines.push(message);
  assert.equal(lines.at(-1)?.type, 'end');
  assert.equal((await client().build.list({ state: 'building' })).length, 0);

  const left = await client().build.trigger({ template: 'tpl' });
  await g.w.kill();
  await g.w.start();
  const dead = await client().build.inspect({ build: left.id });
  assert.ok(dead.state === 'failed' && /interrupted/.test(dead.error?.detail ?? ''), JSON.stringify(dead));
  assert.deepEqual([dead.image_id, (await client().image.list()).some(i => i.build_id === left.id)], [null, false]);
  await clear();
});

test('whoever wants an image of a template that is being built waits for that build', async () => {
  await client().template.create({ name: 'tpl', source: SOURCE });
  const ensure = () => client().image.ensure({ image: 'tpl' });
  const two = await Promise.all([ensure(), ensure()]);
  const wanted = [...two, await ensure()].map(one => one.job?.id ?? assert.fail('there is an image'));
  assert.equal(new Set(wanted).size, 1);
  const { state, result_id } = await job(client().job.get({ job: wanted[0] ?? '' }));
  assert.deepEqual([state, (await client().build.list({ template: 'tpl' })).length], ['succeeded', 1]);
  assert.deepEqual(await ensure(), { image_id: result_id, job: null });
  await clear();
});

test('a build that cannot succeed says why, and leaves nothing', async () => {
  const fails = async (more: object, detail: RegExp) => {
    await client().template.create({ name: 'tpl', source: SOURCE, ...more });
    const build = await ended(await client().build.trigger({ template: 'tpl' }));
    assert.equal(build.state, 'failed');
    assert.match(build.error?.detail ?? '', detail);
    assert.ok(!/\n/.test(build.error?.detail ?? ''));
    await clear();
  };
  await fails(
    { overlays: [{ path: '/etc', content: '' }] },
    /Cannot overlay '\/etc' in the image: there is a directory/,
  );
  await fails(
    {
      overlays: [
        { path: '/l', symlink: '/etc' },
        { path: '/l', content: '' },
      ],
    },
    /Cannot overlay '\/l' in the image: there is a link/,
  );
  await fails({ overlays: [{ path: '/x', host_file: '/nowhere' }] }, /Cannot overlay '\/x': \/nowhere is not there/);
  await fails({ overlays: [{ path: '/x', host_file: '/proc' }] }, /is no file/);
  await fails({ init: 'systemd' }, /Cannot build image 'tpl-v1-.*' with init systemd: the archive has no init/);
  await fails({ size_bytes: 16 * 1024 * 1024, overlays: [{ path: '/x', host_file: await large() }] }, /MiB/);
});

test('100,000 entries: canceled while they are written nothing is left, then they are all there', {
  timeout: 600_000,
}, async t => {
  const path = join(dir, 'many.tar');
  const items = Array.from({ length: 100_000 }, (_, n) => ({ name: `many/${n % 100}/${n}`, data: `text ${n}` }));
  await writeFile(path, archive(...items));
  await client().template.create({ name: 'tpl', source: path });
  const running = await client().build.trigger({ template: 'tpl' });
  for await (const message of client().build.logs({ build: running.id, follow: true }))
    if (message.type === 'progress' && ['unpack', 'write'].includes(message.progress?.stage ?? '')) break;
  const began = performance.now();
  const canceled = await client().build.cancel({ build: running.id });
  t.diagnostic(`canceled in ${Math.round(performance.now() - began)} ms`);
  assert.deepEqual([canceled.state, (await ended(running)).error?.code], ['canceled', 'canceled']);
  assert.deepEqual(await truthful(g.w), []);
  const { image } = await built('tpl');
  assert.equal(await debugfs(image, 'cat /many/99/99999'), 'text 99999');
  assert.equal((await debugfs(image, 'ls -p /many/42')).match(/^\/\d+\/100644\//gm)?.length, 1000);
  await clear();
  for (const { id, distro } of await client().rootfs.list({}))
    if (distro === 'many') await client().rootfs.remove({ rootfs: id });
});

/** 32 MiB that do not go into an image of 16. */
const large = async (): Promise<string> => {
  const path = join(dir, 'large');
  await writeFile(path, Buffer.alloc(32 * 1024 * 1024, 1));
  return path;
};

test('a file of the host as source; built again it is the same image', async () => {
  const path = join(dir, 'My Rootfs.tar');
  await writeFile(path, archive({ name: 'etc', type: '5' }, { name: 'etc/os-release', data: 'PRETTY_NAME="Mine"\n' }));
  await client().template.create({ name: 'tpl', source: path });
  const [first, second] = [await built('tpl'), await built('tpl')];
  assert.deepEqual([first.image.os, first.build.inputs_sha256], ['Mine', second.build.inputs_sha256]);
  const mine = (await client().rootfs.list({})).filter(r => r.distro === 'my-rootfs');
  assert.deepEqual([mine.length, mine[0]?.source], [1, path]);
  await clear();
  await client().rootfs.remove({ rootfs: mine[0]?.id ?? '' });
});

test('an image goes into a file and comes back from it; what is no file system does not', async () => {
  const base = await client().image.inspect({ image: 'base' });
  const to = join(dir, 'base.raw');
  assert.equal((await job(client().image.export({ image: 'base', to }))).state, 'succeeded');
  assert.equal(await sha256File(to), base.sha256);
  await rejects(client().image.export({ image: 'base', to }), 'exists', /exists already/);
  await rejects(client().image.export({ image: 'base', to: join(dir, 'no', 'x') }), 'invalid', /there is no folder/);
  const back = await job(client().image.import({ name: 'back', from: to }));
  assert.equal(back.state, 'succeeded', back.error?.detail ?? '');
  const image = await client().image.inspect({ image: 'back' });
  assert.deepEqual(
    [image.sha256, image.os, image.init, image.agent_version],
    [base.sha256, base.os, base.init, base.agent_version],
  );
  assert.deepEqual([image.build, image.rootfs, image.warning], [null, null, null]);
  const top = client().template.create({ name: 'top', source_type: 'image', source: 'back' });
  const fault = await rejects(top, 'unsupported', /Cannot build on image 'back': it was imported/);
  assert.match(fault.hint ?? '', /--source-type rootfs/);
  await rejects(client().image.import({ name: 'back', from: to }), 'exists', /'back' exists already/);

  const bare = join(dir, 'bare.raw');
  await writeFile(bare, '');
  await truncate(bare, 4 * 1024 * 1024);
  await rejects(client().image.import({ name: 'bare', from: bare }), 'invalid', /no ext4 file system begins/);
  await rejects(client().image.import({ name: 'bare', from: join(dir, 'gone') }), 'invalid', /it is not there/);
  await rejects(client().image.import({ name: 'bare', from: dir }), 'invalid', /it is no file|it cannot be read/);
  await truncate(bare, 4 * 1024 * 1024 + 100);
  const odd = await rejects(
    client().image.import({ name: 'bare', from: bare }),
    'invalid',
    /no disk has 4194404 bytes/,
  );
  assert.equal(odd.hint, `truncate -s %4096 ${bare}`);
  await truncate(bare, 4 * 1024 * 1024);
  await run(['mke2fs', '-q', '-F', '-t', 'ext4', bare], { env: { ...process.env, PATH: SBIN } });
  assert.equal((await job(client().image.import({ name: 'bare', from: bare }))).state, 'succeeded');
  const none = await client().image.inspect({ image: 'bare' });
  assert.equal(none.agent_version, null);
  assert.match(none.warning ?? '', /no guest agent/);
  await run(['dd', 'if=/dev/urandom', `of=${bare}`, 'bs=1k', 'seek=2', 'count=40', 'conv=notrunc']);
  const broken = await job(client().image.import({ name: 'broken', from: bare }));
  assert.deepEqual([broken.state, broken.error?.code], ['failed', 'invalid']);
  await clear();
});

test('up: the steps are told, done, and not done twice', async () => {
  const plan = async () =>
    (await client().vm.up_plan({ rootfs: SOURCE, name: 'web' })).map(s => `${s.step} ${s.what} ${s.done}`);
  const steps = ['kernel', 'rootfs', 'template', 'image', 'vm', 'start'];
  const is = (done: number) => steps.map((what, n) => `${n + 1} ${what} ${n < done}`);
  assert.deepEqual(await plan(), is(2));
  assert.deepEqual([(await client().template.list()).length, (await client().vm.list()).length], [0, 0]);
  const up = { rootfs: SOURCE, name: 'web', memory_mib: 64 };
  const first = await job(client().vm.up(up));
  assert.equal(first.state, 'succeeded', first.error?.detail ?? '');
  assert.deepEqual(await plan(), is(6));
  const vm = await client().vm.get({ vm: 'web' });
  assert.deepEqual([vm.id, vm.state, vm.guest], [first.result_id, 'running', 'ready']);
  await client().vm.stop({ vm: 'web', force: true });
  assert.deepEqual(await plan(), is(5));
  assert.equal((await job(client().vm.up(up))).result_id, vm.id);
  assert.equal((await client().image.list()).length, 2, 'nothing was built again');
  await client().vm.create({ name: 'other', memory_mib: 64, image: 'base' });
  await rejects(
    client().vm.up({ rootfs: SOURCE, name: 'other' }),
    'exists',
    /'other' exists already, and is not of debian:12/,
  );
  await rejects(client().vm.up({ rootfs: 'plan9:4' }), 'not_found', /no provider/);
  await rejects(client().vm.up({ rootfs: '/etc/passwd' }), 'invalid', /distro:version/);
  await clear();
});

test('an export whose daemon is killed in the middle: the next one ends the copying, and takes away what is half made', async t => {
  const to = await mkdtemp(join(tmpdir(), 'nexus-export-'));
  const cp = `#!/bin/sh\nfor last; do :; done\necho half > "$last"\nexec sleep 600\n`;
  await writeFile(join(to, 'cp'), cp, { mode: 0o755 });
  try {
    await using w = await world({ seed: 'booted', env: { PATH: `${to}:${process.env.PATH}` } });
    await w.client.image.export({ image: 'debian', to: join(to, 'debian.raw') });
    await poll('a half copy', 20_000, async () => (await readdir(to)).length > 1 || undefined);
    if ((await readdir(to)).includes('debian.raw')) return t.skip('nothing is copied where blocks are shared');
    assert.match((await readdir(to)).join(), /^\.nexus-job_\w+\.part,cp$/);
    const copying = await procsWithEnv('NEXUS_OWNER', w.data_dir);
    await w.kill();
    assert.equal(copying.length, 1);
    await w.start();
    assert.deepEqual([await readdir(to), await procsWithEnv('NEXUS_OWNER', w.data_dir)], [['cp'], []]);
  } finally {
    await rm(to, { recursive: true });
  }
});
