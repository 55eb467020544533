/** `nexus.machine()`: on a stand-in where things go wrong, and on a real guest as docs/client.md shows it. */
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { bundle } from '../packaging/bundle.ts';
import { runAny } from '../src/lib/proc.ts';
import { nothingLeft, rejects, stage } from './kit/behave.ts';
import { REPO, world } from './kit/world.ts';

test('a machine lasts as long as its scope, and a start that fails leaves nothing', { timeout: 120_000 }, async () => {
  await using s = await stage();
  const { client } = s.w;
  {
    await using box = await client.machine({ image: 'debian', memory_mib: 64, tags: { of: 'test' } });
    await using named = await client.machine({ name: 'mine', memory_mib: 64 });
    assert.match(box.name, /^box-[0-9a-f-]+$/);
    assert.equal(named.name, 'mine');
    const { state, guest, tags } = await client.vm.get({ vm: box.name });
    assert.deepEqual([state, guest, tags], ['running', 'ready', { of: 'test' }]);
    await rejects(client.machine({ name: 'mine', memory_mib: 64 }), 'exists');
    assert.equal((await client.vm.get({ vm: 'mine' })).id, named.id, 'somebody else of that name stays');
    await box.delete();
  }
  await nothingLeft(s.w);
  await assert.rejects(async () => {
    await using _box = await client.machine({ memory_mib: 64 });
    throw new Error('left by an error');
  }, /left by an error/);
  await nothingLeft(s.w);
  await s.behave({ DIE: 3 });
  await rejects(client.machine({ memory_mib: 64 }), 'vmm');
  await nothingLeft(s.w);
  await s.behave({ BOOT_MS: 60_000 });
  await rejects(client.machine({ memory_mib: 64, timeout_ms: 500 }), 'timeout');
  await nothingLeft(s.w);
  await assert.rejects(client.machine({ memory_mib: 64, signal: AbortSignal.timeout(500) }), { name: 'TimeoutError' });
  await assert.rejects(client.machine({ signal: AbortSignal.abort(new Error('before')) }), /before/);
  await nothingLeft(s.w);
});

test('one call is one command, however it is read and ended', { timeout: 120_000 }, async t => {
  await using s = await stage();
  await using box = await s.w.client.machine({ memory_mib: 64 });
  const dir = await mkdtemp(join(tmpdir(), 'nexus-machine-')); // the stand-in's guest runs on this host
  t.after(() => rm(dir, { recursive: true, force: true }));
  await chmod(dir, 0o777); // it has a user of its own
  const file = join(dir, 'runs');
  const sh = (script: string, options = {}) => box.exec(['/bin/sh', '-c', script], options);

  const both = sh(`echo run >>${file}; echo out; echo err >&2; exit 4`);
  const [first, again] = await Promise.all([both, both]);
  assert.equal(first, again);
  assert.deepEqual([first.exit_code, `${first.stdout}`, `${first.stderr}`], [4, 'out\n', 'err\n']);
  assert.throws(() => both[Symbol.asyncIterator](), /was read already/);
  const looped = sh(`echo run >>${file}; echo out`);
  const types: string[] = [];
  for await (const event of looped) types.push(event.type);
  assert.deepEqual(types, ['started', 'stdout', 'exit']);
  assert.equal(`${(await looped).stdout}`, 'out\n');
  assert.throws(() => looped[Symbol.asyncIterator](), /was read already/);
  assert.equal(await readFile(file, 'utf8'), 'run\nrun\n');

  const cut = sh('head -c 100000 /dev/zero', { max_bytes: 10 });
  assert.deepEqual([(await cut).stdout.length, (await cut).truncated], [10, true]);
  const fed = await sh('cat; echo end', { stdin: Readable.from([Buffer.from('a'), Buffer.from('b')]) });
  assert.equal(`${fed.stdout}`, 'abend\n');
  assert.equal((await sh('exit 0', { stdin: Buffer.alloc(1e6) })).exit_code, 0, 'what is not wanted is no failure');
  const broken = async function* () {
    yield Buffer.from('x');
    throw new Error('the source broke');
  };
  await assert.rejects(async () => await sh('cat; exec sleep 600', { stdin: Readable.from(broken()) }), /source broke/);

  await assert.rejects(async () => await box.exec(['/no/such']), { code: 'not_found', reason: 'no_program' });
  await assert.rejects(async () => await sh('exit', { cwd: '/no/such' }), { reason: 'no_cwd' });
  const aborted = AbortSignal.abort(new Error('too late'));
  await assert.rejects(async () => await sh(`echo run >>${file}`, { signal: aborted }), /too late/);
  const abort = new AbortController();
  const told = sh(`trap 'echo TERM >>${file}; exit 0' TERM; echo ready; while :; do sleep 0.05; done`, {
    signal: abort.signal,
  });
  await assert.rejects(async () => {
    for await (const event of told) if (event.type === 'stdout') abort.abort(new Error('enough'));
  }, /enough/);
  await assert.rejects(async () => await told, /enough/);
  assert.equal(await readFile(file, 'utf8'), 'run\nrun\nTERM\n');
  const early = new AbortController();
  const soon = sh('exec sleep 600', { signal: early.signal });
  early.abort(new Error('at once'));
  await assert.rejects(async () => await soon, /at once/);
  const deaf = sh(`trap '' TERM; echo ready; while :; do sleep 0.05; done`, { signal: AbortSignal.timeout(300) });
  await assert.rejects(async () => await deaf, { name: 'TimeoutError' });
  const left = sh('echo ready; exec sleep 600');
  for await (const event of left) if (event.type === 'stdout') break;
  await assert.rejects(async () => await left, { code: 'canceled' });
  const list = await s.w.client.exec.list({ vm: box.id });
  assert.deepEqual(
    list.filter(one => one.running).map(one => one.command),
    ['/bin/sh -c echo ready; exec sleep 600'],
    'the one whose loop was left',
  );
  await left.kill('KILL');
});

/** The examples of a page as one program: the first as it stands, each of the others in a scope of its own. */
const programOf = (page: string): { text: string; output: string[] } => {
  const [first = '', ...others] = [...page.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, text = '']) => text);
  const text = [first, ...others.map(other => `{\n${other}}\n`)].join('');
  return { text, output: [...text.matchAll(/console\.log\(.*\/\/ (.*)$/gm)].map(([, said = '']) => said) };
};

test('every example of docs/client.md does what it says, in a guest that booted', { timeout: 300_000 }, async t => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-page-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const place = join(dir, 'node_modules/@workfort/nexus');
  await mkdir(place, { recursive: true });
  await writeFile(join(place, 'package.json'), await readFile(join(REPO, 'package.json')));
  await bundle(join(place, 'dist'));
  const { text, output } = programOf(await readFile(join(REPO, 'docs/client.md'), 'utf8'));
  assert.ok(output.length > 15, 'the page is not as this test reads it');
  await writeFile(join(dir, 'page.mts'), text);
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const env = { ...process.env, NEXUS_SOCKET: w.socket };
  const said = await runAny([process.execPath, join(dir, 'page.mts')], { env, timeout_ms: 240_000 });
  assert.deepEqual([said.stdout.split('\n').slice(0, -1), said.stderr, said.code], [output, '', 0]);
  await nothingLeft(w);
});
