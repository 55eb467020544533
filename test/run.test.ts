/** `nexusctl run`: a VM for one command, gone with it in every way to leave; and the hold that sees to it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { Holds } from '../src/core/holds.ts';
import { poll, sleep, withDeadline } from '../src/lib/deadline.ts';
import { runAny } from '../src/lib/proc.ts';
import { nothingLeft, rejects, stage, until } from './kit/behave.ts';
import { desk, NO_TMUX } from './kit/tmux.ts';
import { REPO, type World, world } from './kit/world.ts';

const MAIN = join(REPO, 'src/main.ts');

test('run debian:12: the image is built once, the command has streams and an exit code, nothing stays', {
  timeout: 400_000,
}, async () => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const small = ['--memory', '512M', '--vcpus', '1'];
  const first = await w.ctl('run', ...small, 'debian:12', '--', 'uname', '-a');
  assert.equal(first.code, 0, first.stderr);
  assert.match(first.stdout, /^Linux run-[0-9a-f-]+ .* GNU\/Linux\n$/);
  assert.match(first.stderr, /debian:12: its image is made, for this and later runs/);
  await nothingLeft(w);
  const images = await w.client.image.list();
  const script = 'cat; pwd; echo $A >&2; id -un; exit 7';
  const flags = `-i ${small.join(' ')} --env A=1 --cwd /srv --user nobody --timeout 1m`;
  const again = await runAny(['sh', '-c', `echo in | $CTL run ${flags} debian:12 sh -c '${script}'`], {
    env: { ...process.env, NEXUS_SOCKET: w.socket, CTL: `${process.execPath} ${MAIN} nexusctl` },
    timeout_ms: 120_000,
  });
  assert.deepEqual([again.code, again.stdout, again.stderr], [7, 'in\n/srv\nnobody\n', '1\n']);
  assert.deepEqual(await w.client.image.list(), images);
  assert.equal((await w.client.image.ensure({ image: 'debian-12' })).image_id, images[0]?.id);
  await nothingLeft(w);
});

/** A nexusctl whose output is gathered. */
const begin = (w: World, ...args: string[]) => {
  const child: ChildProcess = spawn(process.execPath, [MAIN, 'nexusctl', '--socket', w.socket, 'run', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const said = { stdout: '', stderr: '' };
  child.stdout?.on('data', (text: Buffer) => {
    said.stdout += text;
  });
  child.stderr?.on('data', (text: Buffer) => {
    said.stderr += text;
  });
  const ended = new Promise<number | string>(resolve =>
    child.once('close', (code, name) => resolve(code ?? name ?? '')),
  );
  const ready = () => poll('the command', 30_000, () => said.stdout.includes('ready') || undefined);
  return { child, said, ended, ready };
};

const gone = (w: World, ms = 20_000) =>
  poll('the end of the VM', ms, async () => (await w.client.vm.list({})).length === 0 || undefined);

test('however run is left, its VM goes', { timeout: 240_000 }, async () => {
  await using s = await stage();
  const { w } = s;
  const script = ['sh', '-c', 'echo ready; sleep 600'];
  const interrupted = begin(w, 'debian', '--', ...script);
  await interrupted.ready();
  assert.equal((await w.client.vm.list({}))[0]?.ephemeral, true);
  interrupted.child.kill('SIGINT');
  assert.equal(await interrupted.ended, 130, interrupted.said.stderr);
  await nothingLeft(w);

  const killed = begin(w, 'debian', '--', ...script);
  await killed.ready();
  killed.child.kill('SIGKILL');
  await killed.ended;
  await gone(w);
  await nothingLeft(w);

  const missing = await w.ctl('run', 'debian', 'no-such-program');
  assert.deepEqual([missing.code, missing.stdout], [127, '']);
  const unknown = await w.ctl('run', 'nothing-of-that-name', 'true');
  assert.equal(unknown.code, 125);
  assert.match(unknown.stderr, /There is no image, template or root file system 'nothing-of-that-name'/);
  assert.equal((await w.ctl('run', 'debian')).code, 125, 'no command');
  await s.behave({ BOOT_MS: 60_000 });
  const starting = begin(w, 'debian', '--', ...script);
  await poll('the start', 30_000, async () => (await w.client.vm.list({}))[0]?.state === 'running' || undefined);
  starting.child.kill('SIGTERM');
  assert.equal(await starting.ended, 143);
  assert.match(starting.said.stderr, /Ended by SIGTERM: nothing was run/);
  await nothingLeft(w);
  await s.behave({ DIE: 3 });
  const failed = await w.ctl('run', 'debian', 'true');
  assert.equal(failed.code, 125, failed.stderr);
  await nothingLeft(w);
});

test("run -i -t: this terminal is the command's, and who leaves it leaves no VM", {
  skip: NO_TMUX,
  timeout: 120_000,
}, async () => {
  await using s = await stage();
  await using d = await desk({ NEXUS_SOCKET: s.w.socket, CTL: `${process.execPath} ${MAIN} nexusctl` });
  const pane = await d.open();
  await pane.see(/desk\$$/m);
  const ask = `sh -c 'stty size; echo name?; read n; echo "hi $n"; exit 5'`;
  await pane.type(`clear; $CTL run -i -t debian ${ask}; echo code $?\n`);
  await pane.see(/^30 100\nname\?$/m);
  await pane.type('bob\n');
  await pane.see(/^hi bob\ncode 5\ndesk\$$/m);
  await nothingLeft(s.w);
  await pane.type('clear; $CTL run -i -t debian sh; echo code $?\n');
  await poll('the VM', 30_000, async () => (await s.w.client.vm.list({}))[0]?.guest === 'ready' || undefined);
  await pane.type('echo al""ive\n');
  await pane.see(/^alive$/m);
  await pane.keys('C-p', 'C-q');
  await pane.see(/Left; its VM is deleted\.\ncode 0\ndesk\$$/m);
  await nothingLeft(s.w);
});

test('a VM whose deletion has begun is held by nobody; one that was kept after all is', async () => {
  const deleted = Promise.withResolvers<void>();
  const left: string[] = [];
  using holds = new Holds(id => {
    left.push(id);
    return deleted.promise;
  });
  const first = holds.take('vm');
  holds.take('vm')[Symbol.dispose]();
  assert.deepEqual(left, []);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  assert.deepEqual(left, ['vm']);
  await rejects(
    Promise.try(() => holds.take('vm')),
    'not_found',
  );
  deleted.resolve();
  await sleep(0);
  using _again = holds.take('vm');
});

test('who holds a VM over the death of the daemon keeps it, what nobody holds goes', { timeout: 240_000 }, async () => {
  await using s = await stage();
  const { w } = s;
  const plain = await s.create('plain');
  await rejects(w.client.vm.hold({ vm: plain.id }).next(), 'invalid', /is not ephemeral/);
  await using box = await w.client.machine({ name: 'held', memory_mib: 64 });
  await w.client.vm.create({ name: 'forgotten', memory_mib: 64, ephemeral: true });
  const lost = begin(w, 'debian', '--', 'sh', '-c', 'echo ready; sleep 600');
  await lost.ready();
  await w.kill();
  assert.equal(await lost.ended, 125);
  await w.start();
  await poll('the end of both', 40_000, async () => (await w.client.vm.list({})).length === 2 || undefined);
  assert.equal((await until(w, box.id, 'running')).name, 'held');
  assert.equal(`${(await box.exec(['echo', 'here'])).stdout}`, 'here\n');
  const held = Array.fromAsync(w.client.vm.hold({ vm: box.id }));
  await sleep(200);
  await box.delete();
  assert.deepEqual(await withDeadline('the end of what is held', 10_000, held), [{ type: 'held' }]);
  await w.client.vm.delete({ vm: 'plain' });
  await nothingLeft(w);
});
