/** Templates through the door, and what comes of them. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { JobMessage } from '../src/api/job.ts';
import { sha256File } from '../src/lib/files.ts';
import { rejects } from './kit/behave.ts';
import { settle } from './kit/crash_deeds.ts';
import { type Ground, ground } from './kit/ground.ts';
import { templateDeeds } from './kit/templates.ts';

let g: Ground;
let dir: string;
const { client, ended, built, debugfs, clear } = templateDeeds(() => g);
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

test('a template: its versions, and what a change adds, replaces and takes away', async () => {
  const { template } = client();
  const motd = { path: '/etc/motd', content: 'hello\n' };
  const made = await template.create({ name: 'tpl', source: SOURCE, overlays: [motd], environment: { A: '1' } });
  assert.deepEqual([made.version, made.source_type, made.init, made.size_bytes], [1, 'rootfs', 'auto', null]);
  assert.deepEqual(await client().template.inspect({ template: 'tpl' }), made);
  const [item] = await template.list();
  assert.deepEqual([item?.name, item && 'overlays' in item], ['tpl', false]);
  await rejects(template.update({ template: 'tpl' }), 'invalid', /no change was given/);
  assert.equal((await template.update({ template: 'tpl', overlays: [motd] })).version, 1, 'that is no change');
  const second = await template.update({
    template: made.id,
    overlays: [
      { path: '/etc/new', content: '' },
      { path: '/etc/motd', content: 'other' },
    ],
    environment: { B: '2' },
    init: 'agent',
    size_bytes: 64 * 1024 * 1024,
  });
  assert.deepEqual(second.version, 2);
  assert.deepEqual(second.overlays, [
    { path: '/etc/new', content: '' },
    { path: '/etc/motd', content: 'other' },
  ]);
  assert.deepEqual(second.environment, { A: '1', B: '2' });
  const third = await template.update({
    ...{ template: 'tpl', drop_overlays: ['/etc/new'], drop_environment: ['A'], size_bytes: null },
  });
  assert.deepEqual([third.version, third.size_bytes, third.environment], [3, null, { B: '2' }]);
  assert.deepEqual(third.overlays, [{ path: '/etc/motd', content: 'other' }]);
  await rejects(
    template.update({ template: 'tpl', drop_overlays: ['/etc/new'] }),
    'invalid',
    /no overlay of '\/etc\/new'/,
  );
  await rejects(template.update({ template: 'tpl', drop_environment: ['A'] }), 'invalid', /has no 'A'/);
  await rejects(template.update({ template: 'tpl', source: 'debian:99', sha256: 'a'.repeat(64) }), 'invalid');
  assert.equal((await template.inspect({ template: 'tpl' })).version, 3);
  await rejects(template.create({ name: 'tpl', source: SOURCE }), 'exists', /'tpl' exists already/);
  await rejects(template.create({ name: 'base', source: SOURCE }), 'exists', /an image has that name/);
  await rejects(client().image.build({ name: 'tpl' }), 'exists', /a template has that name/);
  await rejects(client().vm.create({ name: 'vm', image: 'tpl' }), 'not_found', /has no image yet/);
  await rejects(client().rootfs.remove({ rootfs: SOURCE }), 'in_use', /template 'tpl' uses it/);
  await clear();
  await rejects(template.inspect({ template: 'tpl' }), 'not_found', /no template 'tpl'/);
});

test('what cannot be a template is refused with a sentence, and nothing is there', async () => {
  const { template } = client();
  const bad = (more: object, message: RegExp) =>
    rejects(template.create({ name: 'bad', source: SOURCE, ...more }), 'invalid', message);
  const overlay = (one: object, message: RegExp) => bad({ overlays: [{ path: '/a', ...one }] }, message);
  await overlay({}, /an overlay has one of content/);
  await overlay({ content: '', delete: true }, /an overlay has one of/);
  await overlay({ content: '', sha256: 'a'.repeat(64) }, /sha256 goes with host_file/);
  await overlay({ delete: true, mode: '0755' }, /no mode and no owner/);
  await overlay({ symlink: 'x', mode: '0755' }, /a symbolic link has no mode/);
  await overlay({ content: '', mode: '0999' }, /octal digits/);
  await overlay({ content: '', uid: -1 }, /uid/);
  await overlay({ bytes_base64: '!!!' }, /bytes_base64/);
  await overlay({ host_file: 'relative' }, /absolute path/);
  await overlay({ content: 'x'.repeat(4 * 1024 * 1024 + 1) }, /more than 4 MiB/);
  for (const path of ['', '/', 'etc/motd', '/etc/../x', '/etc/', '//x', '/a/./b', '/a\0'])
    await overlay({ path, content: '' }, /overlays/);
  await bad({ environment: { 'A B': '1' } }, /environment/);
  await bad({ environment: { A: 'x\0' } }, /environment/);
  await bad({ sha256: 'a'.repeat(64) }, /a hash goes with a path or a URL/);
  await bad({ source: 'https://example.org/rootfs.tar.gz' }, /nothing proves what comes from it/);
  await bad({ source: 'http://example.org/rootfs.tar.gz' }, /https/);
  await bad({ source: join(dir, 'none.tar') }, /Cannot use that source: \/.*none\.tar is not there\./);
  await bad({ source: dir }, /is no file/);
  await bad({ source: join(dir, 'none.tar'), sha256: 'a'.repeat(64) }, /is not there/);
  await bad({ name: 'x'.repeat(41) }, /at most 40 characters/);
  await rejects(template.create({ name: 'bad', source: 'plan9:4' }), 'not_found', /no provider/);
  await rejects(template.create({ name: 'bad', source: 'rfs_01h455vb4pex5vsknk084sn02q' }), 'not_found');
  await rejects(
    template.create({ name: 'bad', source_type: 'image', source: 'none' }),
    'not_found',
    /image or template/,
  );
  await rejects(client().build.trigger({ template: 'bad' }), 'not_found', /no template 'bad'/);
  assert.deepEqual(await template.list(), []);
});

test('a build copies its template; built again after a change it is another image, and the old one is as it was', async t => {
  const host_file = join(dir, 'from-host');
  await writeFile(host_file, 'of the host');
  await client().template.create({
    ...{ name: 'tpl', source: SOURCE, environment: { COLOUR: 'deep red' } },
    overlays: [
      { path: '/etc/motd', content: 'first\n', mode: '4640', uid: 7, gid: 8 },
      { path: '/etc/bytes', bytes_base64: 'AP8=' },
      { path: '/etc/host', host_file },
      { path: '/etc/link', symlink: 'motd' },
      { path: '/usr/bin/true', delete: true },
    ],
  });
  const asked = await client().build.trigger({ template: 'tpl' });
  assert.deepEqual(
    [asked.state, asked.template, asked.template_version, 'overlays' in asked],
    ['building', 'tpl', 1, false],
  );
  const messages: JobMessage[] = [];
  for await (const message of client().build.logs({ build: asked.id, follow: true })) messages.push(message);
  assert.ok(messages.at(-1)?.type === 'end' && messages.some(m => m.type === 'log' && /entries/.test(m.line)));
  const first = await ended(asked);
  assert.equal(first.state, 'success', first.error?.detail ?? '');
  const image = await client().image.inspect({ image: 'tpl' });
  assert.deepEqual([image.id, image.sha256, image.name], [first.image_id, first.image_sha256, first.image_name]);
  assert.match(image.name, /^tpl-v1-[0-9a-z]{6}$/);
  assert.equal(first.overlays[2]?.sha256, await sha256File(host_file), 'what the file held is recorded');
  assert.equal(await debugfs(image, 'cat /etc/motd'), 'first\n');
  assert.match(await debugfs(image, 'stat /etc/motd'), /Mode: +04640[\s\S]*User: +7 +Group: +8 /);
  assert.equal(await debugfs(image, 'cat /etc/host'), 'of the host');
  assert.match(await debugfs(image, 'stat /etc/link'), /Fast link dest: "motd"/);
  assert.equal(await debugfs(image, 'stat /usr/bin/true'), '');
  assert.match(await debugfs(image, 'cat /etc/nexus/environment'), /^COLOUR="deep red"$/m);
  assert.match(await debugfs(image, 'cat /etc/nexus/image.yaml'), /^template: "tpl"\ntemplate_version: 1$/m);

  const again = await built('tpl');
  assert.equal(again.build.inputs_sha256, first.inputs_sha256);
  if (process.env.NEXUS_MKE2FS) assert.equal(again.image.sha256, image.sha256);
  else t.diagnostic('no newer mke2fs: the same inputs need not give the same bytes');
  assert.notEqual(again.image.id, image.id);
  await client().template.update({ template: 'tpl', overlays: [{ path: '/etc/motd', content: 'second\n' }] });
  const second = await built('tpl');
  assert.notEqual(second.image.sha256, image.sha256);
  assert.notEqual(second.build.inputs_sha256, first.inputs_sha256);
  assert.deepEqual(await ended(first), first, 'the record of the first build is as it was');
  assert.equal(await debugfs(image, 'cat /etc/motd'), 'first\n');
  assert.equal(await sha256File(join(g.w.data_dir, 'images', image.id, 'disk.raw')), image.sha256);
  assert.equal((await client().image.inspect({ image: 'tpl' })).id, second.image.id, 'its newest');
  const vm = await client().vm.create({ name: 'vm', image: 'tpl', memory_mib: 64 });
  assert.equal(vm.image_id, second.image.id);
  const seen = (await client().vm.inspect({ vm: 'vm' })).image;
  assert.deepEqual(
    [seen?.build?.id, seen?.template, seen?.rootfs?.version],
    [second.build.id, { id: second.build.template_id, name: 'tpl', version: 2 }, '12'],
  );
  await client().template.remove({ template: 'tpl' });
  assert.deepEqual((await client().vm.inspect({ vm: 'vm' })).image?.template?.version, null);
  await rejects(client().image.remove({ image: second.image.id }), 'in_use', /workspace 'vm-root' came from it/);
  assert.deepEqual(
    (await client().build.list({})).slice(0, 3).map(b => b.id),
    [second, again].map(b => b.build.id).concat(first.id),
  );
  await clear();
});

const logOf = async (build: { id: string }): Promise<string[]> => {
  const lines: string[] = [];
  for await (const message of client().build.logs({ build: build.id }))
    if (message.type === 'log') lines.push(message.line);
  return lines;
};

test('an image in which a template put something else in the place of the agent has none, and says so', async () => {
  const { template } = client();
  const agent = '/usr/lib/nexus/nexus-agent';
  await template.create({ name: 'tpl', source: SOURCE });
  const { image } = await built('tpl');
  assert.deepEqual([image.agent_version !== null, image.warning], [true, null]);
  for (const overlay of [{ path: agent, content: 'x' }, { path: '/usr', delete: true } as const]) {
    await template.update({ template: 'tpl', overlays: [overlay], drop_overlays: [] });
    const { image: none, build } = await built('tpl');
    assert.equal(none.agent_version, null, overlay.path);
    assert.match(none.warning ?? '', /no guest agent/);
    assert.ok((await logOf(build)).includes(none.warning ?? ''), 'its log says so');
    assert.match(await debugfs(none, 'cat /etc/nexus/image.yaml'), /^agent_version: null$/m);
    await template.update({ template: 'tpl', drop_overlays: [overlay.path] });
  }
  await clear();
});

test('a template never builds on its own images, not through others either', async () => {
  const { template } = client();
  const onTop = (of: string, source: string) => template.update({ template: of, source_type: 'image', source });
  const own = /Cannot update template 'low': it would build on its own images/;
  const low = await template.create({ name: 'low', source: SOURCE });
  const { image } = await built('low');
  await template.create({ name: 'mid', source_type: 'image', source: 'low' });
  await template.create({ name: 'top', source_type: 'image', source: 'mid' });
  for (const source of ['low', low.id, 'mid', 'top']) await rejects(onTop('low', source), 'invalid', own);
  assert.equal((await template.inspect({ template: 'low' })).version, 1);
  await onTop('low', image.name); // an image of before, which does not change
  await rejects(client().rootfs.remove({ rootfs: SOURCE }), 'in_use', /template '\w+' uses it/);
  await clear();
});

test('an image on top of another has what that has, and stands on it', async () => {
  const host_file = join(dir, 'pinned');
  await writeFile(host_file, 'one');
  const below = [
    { path: '/etc/below', content: 'below' },
    { path: '/etc/both', content: 'below' },
  ];
  await client().template.create({
    ...{ name: 'low', source: SOURCE, environment: { A: 'low', B: 'low' } },
    overlays: [...below, { path: '/etc/pinned', host_file }],
  });
  await client().template.create({
    ...{ name: 'top', source_type: 'image', source: 'low', environment: { B: 'top' } },
    overlays: [{ path: '/etc/both', content: 'top' }],
  });
  await rejects(client().build.trigger({ template: 'top' }), 'not_found', /'low' has no image yet/);
  const low = await built('low');
  const top = await built('top');
  const has = async (path: string) => debugfs(top.image, `cat ${path}`);
  assert.deepEqual(
    [await has('/etc/below'), await has('/etc/both'), await has('/etc/pinned')],
    ['below', 'top', 'one'],
  );
  assert.match(await has('/etc/nexus/environment'), /^A="low"\nB="top"\n/);
  const { base, rootfs } = await client().image.inspect({ image: 'top' });
  assert.deepEqual([base?.id, rootfs?.id], [low.image.id, low.image.rootfs_id]);
  await rejects(client().image.remove({ image: 'low' }), 'in_use', /template 'top' builds on it/);
  await rejects(client().template.remove({ template: 'low' }), 'in_use', /template 'top' builds on its images/);
  await rejects(client().rootfs.remove({ rootfs: SOURCE }), 'in_use', /template 'low' uses it/);
  await writeFile(host_file, 'two');
  const changed = await ended(await client().build.trigger({ template: 'top' }));
  assert.deepEqual([changed.state, changed.error?.code], ['failed', 'unverified']);
  assert.match(changed.error?.detail ?? '', /holds something else than .*: image 'low-v1-\w+' below was built with/);
  assert.equal(changed.error?.hint, 'nexusctl build trigger low');
  await built('low');
  await built('top');
  await client().template.update({
    ...{ template: 'top', overlays: [{ path: '/etc/own', host_file, sha256: 'a'.repeat(64) }] },
  });
  const own = await ended(await client().build.trigger({ template: 'top' }));
  assert.match(own.error?.detail ?? '', /holds something else than it did, or should\.$/);
  await clear();
});
