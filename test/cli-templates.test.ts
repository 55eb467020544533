/** What nexusctl makes of the words for templates and builds. */
import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, test } from 'node:test';
import type { BuildItem } from '../src/api/build.ts';
import type { Template } from '../src/api/template.ts';
import type { Ctx } from '../src/core/handler.ts';
import { runAny } from '../src/lib/proc.ts';
import { sampleJob, testDoor } from './kit/door.ts';

const dir = await mkdtemp(join(tmpdir(), 'nexus-cli-templates-'));
after(() => rm(dir, { recursive: true, force: true }));

const MAIN = join(import.meta.dirname, '../src/main.ts');
const ctl = (socket: string, ...argv: string[]) =>
  runAny([process.execPath, MAIN, 'nexusctl', ...argv], { cwd: dir, env: { ...process.env, NEXUS_SOCKET: socket } });

const blueprint = { source_type: 'rootfs', source: 'debian:12', sha256: null, size_bytes: null, init: 'auto' } as const;
const template: Template = {
  ...{ id: 'tpl_01h455vb4pex5vsknk084sn02q', name: 'base', version: 1, ...blueprint, overlays: [], environment: {} },
  ...{ created_at_ms: 1, updated_at_ms: 1 },
};
const build: BuildItem = {
  ...{ id: 'bld_01h455vb4pex5vsknk084sn02q', image_name: 'base-v1-4sn02q', template_id: template.id, template: 'base' },
  ...{ template_version: 1, ...blueprint, base_image_id: null, rootfs_id: null, state: 'building' },
  ...{ job_id: 'job_01h455vb4pex5vsknk084sn02q', image_id: null, inputs_sha256: null, image_sha256: null, error: null },
  ...{ created_at_ms: 1, ended_at_ms: null },
};

test('overlays and variables as they are typed; a build is its ID, and its log has an end', async () => {
  const seen: unknown[] = [];
  const keep =
    <T>(answer: T) =>
    async (_ctx: Ctx, input: unknown) => {
      seen.push(input);
      return answer;
    };
  await using door = await testDoor({
    'template.create': keep(template),
    'template.update': keep(template),
    'build.trigger': keep(build),
    'vm.up_plan': keep([{ step: 1, what: 'kernel' as const, done: false, detail: 'get it', id: null }]),
    'build.logs': async (_ctx, { follow }) =>
      (async function* () {
        yield { type: 'log' as const, at_ms: 1, line: 'a line' };
        if (follow)
          yield {
            type: 'end' as const,
            job: { ...sampleJob('failed'), error: { code: 'no_room' as const, detail: 'Full.' } },
          };
      })(),
  });
  const { socket } = door;
  await writeFile(join(dir, 'motd.txt'), Buffer.from([0, 255]));
  await writeFile(join(dir, 'run'), '#!/bin/sh\n');
  await chmod(join(dir, 'run'), 0o755);
  const flags = ['--name', 'base', '--source-type', 'rootfs', '--source', './rootfs.tar', '--size', '1G'];
  const made = await ctl(socket, 'template', 'create', ...flags);
  assert.equal(made.code, 0, made.stderr);
  const overlays = ['/etc/motd=@motd.txt', '/bin/run=@run', '/a=b=c', '{"path":"/gone","delete":true}'];
  const laid = overlays.flatMap(text => ['--overlay', text]);
  const more = ['--environment', 'A=1', '-e', 'B=x=y', '--drop-overlay', '/old'];
  const updated = await ctl(socket, 'template', 'update', 'base', ...laid, ...more);
  assert.equal(updated.code, 0, updated.stderr);
  const triggered = await ctl(socket, 'build', 'trigger', 'base');
  assert.deepEqual([triggered.code, triggered.stdout], [0, `${build.id}\n`]);
  assert.partialDeepStrictEqual(seen, [
    { name: 'base', source_type: 'rootfs', source: join(dir, 'rootfs.tar'), size_bytes: 1024 ** 3 },
    {
      template: 'base',
      overlays: [
        { path: '/etc/motd', bytes_base64: 'AP8=' },
        { path: '/bin/run', mode: '0755' },
        { path: '/a', content: 'b=c' },
        { path: '/gone', delete: true },
      ],
      environment: { A: '1', B: 'x=y' },
      drop_overlays: ['/old'],
    },
    { template: 'base' },
  ]);
  const [until, through] = [
    await ctl(socket, 'build', 'logs', 'base'),
    await ctl(socket, 'build', 'logs', '-f', 'base'),
  ];
  assert.deepEqual([until.code, until.stdout], [0, 'a line\n']);
  assert.deepEqual([through.code, through.stdout, through.stderr], [7, 'a line\n', 'error: Full.\n']);
  for (const [bad, message] of [
    ['/x', /PATH=TEXT/],
    ['/x=@gone', /ENOENT|no such file/],
    ['{', /no JSON/],
  ] as const) {
    const refused = await ctl(socket, 'template', 'update', 'base', '--overlay', bad);
    assert.deepEqual([refused.code, message.test(refused.stderr)], [2, true], refused.stderr);
  }
  const plan = ['--rootfs', 'debian:12', '--name', 'web', '--memory', '512M', '--dry-run'];
  const planned = await ctl(socket, 'up', ...plan);
  assert.deepEqual(
    [planned.code, planned.stdout],
    [0, 'STEP  WHAT    DONE  DETAIL  ID\n1     kernel  no    get it  -\n'],
  );
  assert.deepEqual(seen.at(-1), { rootfs: 'debian:12', name: 'web' });
  const nameless = await ctl(socket, 'template', 'create', '--source', 'debian:12');
  assert.deepEqual([nameless.code, /NAME is missing/.test(nameless.stderr)], [2, true], nameless.stderr);
});
