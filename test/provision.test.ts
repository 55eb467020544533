/** What a VM is given for its first boot: files, environment, a script; on a stand-in, whose guest runs on this host. */
import assert from 'node:assert/strict';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, test } from 'node:test';
import type { OpArgs } from '../src/api/ops.ts';
import type { Vm } from '../src/api/vm.ts';
import { execResult } from '../src/client/exec.ts';
import { idOf } from '../src/core/ids.ts';
import { poll } from '../src/lib/deadline.ts';
import { killVmm, rejects, stage, staged, until } from './kit/behave.ts';

const s = await staged();
const { w, sh } = s;
/** The guest has a user of its own. */
const dir = await mkdtemp(join(tmpdir(), 'nexus-provision-'));
/** Where the text of its script is: the guest's memory is this host's. */
const textOf = ({ id, root_ws_id }: Pick<Vm, 'id' | 'root_ws_id'>) =>
  `/dev/shm/nexus-first-boot-${idOf('exec', id, 'first-boot', root_ws_id ?? '')}`;
/** The guest has a user of its own. */
await chmod(dir, 0o777);
after(() => rm(dir, { recursive: true, force: true }));

/** In a world of its own, beside the other tests: it takes as long as a guest may be silent. */
const frozen = (async () => {
  await using other = await stage();
  const { client } = other.w;
  const script = 'echo begun; kill -STOP $PPID; sleep 600';
  const vm = await client.vm.create({
    name: 'frozen',
    memory_mib: 64,
    first_boot: script,
    first_boot_timeout_ms: 1000,
  });
  const fault = await rejects(client.vm.start({ vm: 'frozen' }), 'guest');
  const { state, provision } = await client.vm.get({ vm: 'frozen' });
  await other.clear();
  await rm(textOf(vm));
  return { fault, state, provision };
})();
frozen.catch(() => {}); // the test that awaits it tells

type Given = Omit<OpArgs<'vm.create'>, 'name'>;
const create = (name: string, given: Given) => w.client.vm.create({ name, memory_mib: 64, ...given });
const started = async (name: string, given: Given) => {
  await create(name, given);
  return w.client.vm.start({ vm: name });
};
const said = async (vm: string, script: string) => (await sh(vm, script)).stdout.toString();
const linesOf = async (path: string) => (await readFile(path, 'utf8').catch(() => '')).split('\n').slice(0, -1);
const provisionOf = async (vm: string) => (await w.client.vm.get({ vm })).provision;

test('files, environment and script are there when the VM is ready, and of its first boot alone', async () => {
  const [text, bytes, runs] = [join(dir, 'a/b/text'), join(dir, 'bytes'), join(dir, 'runs')];
  const vm = await create('all', {
    files: [
      { path: text, content: 'Grüße\n', mode: '0640' },
      { path: bytes, bytes_base64: Buffer.from([0, 255, 10]).toString('base64') },
    ],
    env: { A: 'from the VM', B: "it's $HOME" },
    first_boot: `cat ${text} && echo "$A, $B" >>${runs}`,
  });
  assert.deepEqual([vm.provision?.state, 'env' in vm], ['pending', false]);
  const { provision } = await w.client.vm.start({ vm: 'all' });
  assert.deepEqual([provision?.state, provision?.error, provision?.output], ['done', null, []]);
  assert.equal(await readFile(text, 'utf8'), 'Grüße\n');
  assert.deepEqual([...(await readFile(bytes))], [0, 255, 10]);
  assert.equal((await stat(text)).mode & 0o7777, 0o640);
  assert.equal(await said('all', 'echo "$A, $B"'), "from the VM, it's $HOME\n");
  const own = await execResult(w.client.exec.run({ vm: 'all', argv: ['sh', '-c', 'echo $A'], env: { A: 'own' } }));
  assert.equal(`${own.stdout}`, 'own\n');
  await using terminal = await w.client.terminal.open({ vm: 'all', cols: 80, rows: 24 });
  await terminal.send(Buffer.from('echo "<$A>"; exit\n'));
  let screen = '';
  for await (const piece of terminal) if (piece instanceof Uint8Array) screen += Buffer.from(piece).toString();
  assert.match(screen, /<from the VM>/);

  await writeFile(bytes, 'changed');
  await w.client.vm.restart({ vm: 'all' });
  assert.equal(await said('all', 'echo "$A"'), 'from the VM\n', 'at each boot');
  assert.equal(await readFile(bytes, 'utf8'), 'changed', 'files at the first alone');
  assert.deepEqual(await linesOf(runs), ["from the VM, it's $HOME"], 'the script once');
  const shown = await w.client.vm.inspect({ vm: 'all' });
  assert.deepEqual(
    [shown.provision?.state, shown.provision?.files, shown.provision?.env, shown.provision?.first_boot],
    ['done', [text, bytes], ['A', 'B'], true],
  );
  await s.clear();
});

test('on the command line: as overlays of templates are typed', async () => {
  const [motd, set, tool] = [join(dir, 'motd'), join(dir, 'setup.sh'), join(dir, 'tool')];
  await writeFile(join(dir, 'motd.txt'), 'Welcome.\n');
  await writeFile(tool, '#!/bin/sh\n', { mode: 0o755 });
  await writeFile(set, `#!/usr/bin/env sh\necho "$0 $A" >${dir}/ran\n`);
  const files = ['--file', `${motd}=@${dir}/motd.txt`, '--file', `${dir}/x=text`, '--file', `${dir}/bin/tool=@${tool}`];
  const json = ['--file', `{"path":"${dir}/json","content":"j","mode":"0600"}`];
  const more = ['--env', 'A=1', '-e', 'B=2=3', '--first-boot', `@${set}`, '--first-boot-timeout', '1m'];
  const made = await w.ctl('vm', 'create', 'typed', '--memory', '64M', ...files, ...json, ...more);
  assert.equal(made.code, 0, made.stderr);
  const start = await w.ctl('vm', 'start', 'typed');
  assert.equal(start.code, 0, start.stderr);
  assert.deepEqual(
    [await readFile(motd, 'utf8'), await readFile(join(dir, 'x'), 'utf8'), await said('typed', 'echo $B')],
    ['Welcome.\n', 'text', '2=3\n'],
  );
  assert.equal((await stat(join(dir, 'bin/tool'))).mode & 0o777, 0o755);
  assert.match(await readFile(join(dir, 'ran'), 'utf8'), /^\/dev\/shm\/nexus-\S+ 1\n$/, 'by its interpreter');
  const inspect = (await w.ctl('vm', 'inspect', 'typed')).stdout;
  assert.match(inspect, /\ngiven +\/\S+\/motd, .*\/json, \$A, \$B, a first-boot script\nprovisioned +all of it\n/);
  for (const [flags, why] of [
    [['--file', '/x=@/nowhere'], /ENOENT/],
    [['--file', 'nothing'], /must be PATH=TEXT/],
    [['--first-boot', '@/nowhere'], /ENOENT/],
  ] as const) {
    const bad = await w.ctl('vm', 'create', 'bad', ...flags);
    assert.equal(bad.code, 2);
    assert.match(bad.stderr, why);
  }
  await s.clear();
});

test('what does not fit is refused before anything is made, with the field', async () => {
  const big = 'x'.repeat(1024 * 1024 + 1);
  const one = (path: string) => ({ path, content: '' });
  const cases: [Given, RegExp][] = [
    [{ files: [one('etc/motd')] }, /'files\[0\]\.path': an absolute path/],
    [{ files: [one('/etc/../motd')] }, /'files\[0\]\.path': a path has no empty part/],
    [{ files: [one('/etc/')] }, /'files\[0\]\.path'/],
    [{ files: [one('/')] }, /'files\[0\]\.path'/],
    [{ files: [one(`/${'ü'.repeat(2048)}`)] }, /'files\[0\]\.path': a path has at most 4095 bytes/],
    [{ files: [one('/a\0b')] }, /'files\[0\]\.path'/],
    [{ files: [one('/a'), one('/b'), one('/a')] }, /'files\[2\]\.path': it is given twice/],
    [{ files: [one('/a/b'), one('/a')] }, /'files\[1\]\.path': one of two files would be a directory/],
    [{ files: [{ path: '/a' }] }, /'files\[0\]\.content': a file has either content or bytes_base64/],
    [{ files: [{ path: '/a', content: 'x', bytes_base64: 'eA==' }] }, /either content or bytes_base64/],
    [{ files: [{ path: '/a', bytes_base64: '?' }] }, /'files\[0\]\.bytes_base64'/],
    [{ files: [{ path: '/a', content: big }] }, /'files\[0\]\.content': it has more than 1 MiB/],
    [{ files: [1, 2, 3, 4, 5].map(n => ({ path: `/${n}`, content: big.slice(1) })) }, /'files': all files together/],
    [{ files: Array.from({ length: 257 }, (_, n) => one(`/${n}`)) }, /'files' must have at most 256/],
    [{ files: [{ path: '/a', content: '', mode: '8' }] }, /'files\[0\]\.mode'/],
    [{ files: [{ path: '/a', content: '', uid: -1 }] }, /'files\[0\]\.uid'/],
    [{ env: { 'A-B': '' } }, /'env\.A-B'|'env'/],
    [{ env: { A: 'a\0b' } }, /'env\.A': a value has no NUL/],
    [{ env: { '': 'x' } }, /'env/],
    [{ env: Object.fromEntries([1, 2, 3, 4, 5].map(n => [`A${n}`, 'x'.repeat(32_768)])) }, /'env': all variables/],
    [{ first_boot: 'a\0b' }, /'first_boot': a script has no NUL/],
    [{ first_boot: '' }, /'first_boot'/],
    [{ first_boot: big }, /'first_boot': it has more than 1 MiB/],
    [{ first_boot: 'x', first_boot_timeout_ms: 0 }, /'first_boot_timeout_ms'/],
  ];
  for (const [given, why] of cases) await rejects(create('bad', given), 'invalid', why);
  await s.clear();
});

test('a file that cannot be written: the fault names it, the VM runs on, the next start tries again', async () => {
  const [solid, ran] = [join(dir, 'solid'), join(dir, 'ran-after')];
  await writeFile(solid, '');
  const fault = await rejects(
    started('stuck', { files: [{ path: `${solid}/x`, content: 'x' }], first_boot: `echo >>${ran}` }),
    'guest',
    /^VM 'stuck' runs, but did not get all that it was given: cannot write '\S+\/solid\/x': .* \(ENOTDIR\)\.$/,
  );
  assert.equal(fault.reason, 'file');
  assert.match(fault.hint ?? '', /vm inspect stuck/);
  const vm = await w.client.vm.get({ vm: 'stuck' });
  assert.deepEqual([vm.state, vm.guest, vm.provision?.state], ['running', 'ready', 'failed']);
  await rejects(w.client.vm.wait({ vm: 'stuck', timeout_ms: 600_000 }), 'guest', /ENOTDIR/);
  assert.equal((await w.client.vm.wait({ vm: 'stuck', for: 'running' })).state, 'running');
  assert.equal(await said('stuck', 'echo still'), 'still\n');
  assert.deepEqual(await linesOf(ran), [], 'the script has not run');
  await rm(solid);
  await w.client.vm.restart({ vm: 'stuck' });
  assert.equal((await provisionOf('stuck'))?.state, 'done');
  assert.deepEqual([await readFile(`${solid}/x`, 'utf8'), await linesOf(ran)], ['x', ['']]);
  await s.clear();
});

test('a script that fails: exit code and last lines, clean; it is not run again', async () => {
  const ran = join(dir, 'ran-badly');
  const script = `echo >>${ran}\nfor n in 1 2 3 4 5 6; do echo line $n; done\nprintf '\\033[31mred\\a\\n' >&2\nexit 3\n`;
  const fault = await rejects(
    started('bad', { first_boot: script }),
    'guest',
    /its first-boot script ended with exit code 3\. Its last lines: line 5 \| line 6 \| red$/,
  );
  assert.equal(fault.reason, 'exit');
  const { provision } = await w.client.vm.get({ vm: 'bad' });
  assert.deepEqual(provision?.output.slice(-2), ['line 6', 'red']);
  assert.match((await w.ctl('vm', 'inspect', 'bad')).stdout, /\nprovisioned +\d.* exit code 3[^\n]*\n +\| line 1\n/);
  const again = await w.ctl('vm', 'restart', 'bad');
  assert.equal(again.code, 10);
  assert.match(again.stderr, /exit code 3/);
  await w.stop();
  await w.start();
  await rejects(w.client.vm.wait({ vm: 'bad' }), 'guest', /exit code 3/);
  assert.deepEqual(await linesOf(ran), [''], 'once');

  const long = `#!/bin/sh -e\n${'#'.repeat(512 * 1024)}\nexit 5\n`;
  await rejects(started('long', { first_boot: long }), 'guest', /exit code 5/);
  await w.client.vm.delete({ vm: 'long' });
  await rejects(started('killed', { first_boot: 'kill -9 $$' }), 'guest', /first-boot script was ended by signal KILL/);
  const late = started('late', { first_boot: 'echo begun; sleep 600', first_boot_timeout_ms: 1000 });
  assert.equal((await rejects(late, 'guest', /did not end within 1 s\. Its last lines: begun/)).reason, 'timeout');
  await rejects(started('none', { first_boot: '#!/no/such/program\n' }), 'guest', /exit code 127/);
  await rejects(w.client.machine({ memory_mib: 64, first_boot: 'exit 4' }), 'guest', /exit code 4/);
  assert.equal((await w.client.vm.list({})).length, 4, 'a machine that fails leaves nothing');
  await s.clear();
});

/** A script that is in the middle until `goes` is there. */
const slow = (name: string) => {
  const [begun, goes, ended] = ['begun', 'goes', 'ended'].map(what => join(dir, `${name}-${what}`));
  const script = `echo >>${begun}; while [ ! -e ${goes} ]; do sleep 0.1; done; echo >>${ended}`;
  const inside = () => poll('the script', 20_000, async () => (await linesOf(begun ?? '')).length > 0 || undefined);
  return {
    script,
    inside,
    go: () => writeFile(goes ?? '', ''),
    runs: async () => [await linesOf(begun ?? ''), await linesOf(ended ?? '')],
  };
};

test('a daemon killed in the middle of the script: the next one finds it, and it has run once', async () => {
  for (const how of ['kill', 'stop'] as const) {
    const { script, inside, go, runs } = slow(how);
    await create(how, { first_boot: script });
    const start = w.client.vm.start({ vm: how }).catch(() => {});
    await inside();
    await w[how]();
    await start;
    await w.start();
    assert.equal((await provisionOf(how))?.state, 'pending');
    await rejects(w.client.vm.wait({ vm: how, timeout_ms: 500 }), 'timeout');
    await go();
    await w.client.vm.wait({ vm: how });
    assert.deepEqual([(await provisionOf(how))?.state, await runs()], ['done', [[''], ['']]]);
  }
  const { script, inside, go, runs } = slow('meanwhile');
  await create('meanwhile', { first_boot: script });
  const start = w.client.vm.start({ vm: 'meanwhile' }).catch(() => {});
  await inside();
  await w.kill();
  await start;
  await go();
  await poll('the end of the script', 10_000, async () => ((await runs())[1] ?? []).length > 0 || undefined);
  await w.start();
  await w.client.vm.wait({ vm: 'meanwhile' });
  assert.deepEqual(await runs(), [[''], ['']], 'it ended while there was no daemon');
  await s.clear();
});

test('a VM that ends in the middle of the script: nobody knows, and that is said; the script is not run again', async () => {
  const { script, inside, runs } = slow('cut');
  const { id } = await create('cut', { first_boot: script });
  const start = w.client.vm.start({ vm: 'cut' });
  start.catch(() => {});
  await inside();
  await killVmm(w, id);
  await rejects(start, 'vmm');
  await until(w, 'cut', 'crashed');
  assert.equal((await provisionOf('cut'))?.state, 'pending');
  const fault = await rejects(
    w.client.vm.start({ vm: 'cut' }),
    'guest',
    /nobody can know how its first-boot script ended/,
  );
  assert.equal(fault.reason, 'interrupted');
  await rejects(w.client.vm.restart({ vm: 'cut' }), 'guest', /nobody can know/);
  assert.deepEqual(await runs(), [[''], []]);

  const stopped = slow('stopped');
  await create('stopped', { first_boot: stopped.script });
  await w.client.vm.start({ vm: 'stopped', wait: 'running' });
  await stopped.inside();
  await w.client.vm.stop({ vm: 'stopped', force: true });
  await rejects(w.client.vm.start({ vm: 'stopped' }), 'guest', /nobody can know/);
  await s.clear();
});

test('another root begins anew, a snapshot of the one that was provisioned does not', async () => {
  const runs = join(dir, 'disk-runs');
  const { root_ws_id } = await started('disks', { first_boot: `echo >>${runs}` });
  await w.client.vm.stop({ vm: 'disks' });
  const ws = root_ws_id ?? '';
  await w.client.ws.snapshot({ ws, name: 'later' });
  const swap = async (to: string) => {
    const now = (await w.client.vm.get({ vm: 'disks' })).root_ws_id;
    if (now !== null) await w.client.ws.detach({ ws: now });
    await w.client.ws.attach({ ws: to, vm: 'disks', role: 'root' });
    const { provision } = await w.client.vm.start({ vm: 'disks' });
    assert.equal(provision?.state, 'done');
    await w.client.vm.stop({ vm: 'disks' });
    return (await linesOf(runs)).length;
  };
  assert.equal(await swap('later'), 1);
  await w.client.ws.snapshot({ ws: 'later', name: 'rollback' });
  await w.client.ws.detach({ ws: 'later' });
  await w.client.ws.remove({ ws: 'later' });
  await w.client.ws.snapshot({ ws: 'rollback', name: 'second' });
  await w.client.ws.remove({ ws: 'rollback' });
  assert.equal(await swap('second'), 1, 'though what is between them is gone');
  await w.client.ws.create({ name: 'fresh', image: 'debian' });
  assert.equal(await swap('fresh'), 2);
  assert.equal(await swap('fresh'), 2);
  const clone = await w.client.vm.create({ name: 'clone', memory_mib: 64, ws: ws });
  assert.equal(clone.provision, null);
  await w.client.vm.delete({ vm: 'clone' });
  await w.client.vm.delete({ vm: 'disks' });
  for (const one of await w.client.ws.list({})) await w.client.ws.remove({ ws: one.id });
  await s.clear();
});

test('what it was given cannot be read: a start says so, and goes on when it can', async () => {
  const ran = join(dir, 'ran-after-damage');
  await create('damaged', { first_boot: `echo >>${ran}` });
  const given = async (files: string) => {
    await w.stop();
    const db = new DatabaseSync(join(w.data_dir, 'state.db'));
    db.prepare('update vm_provisions set files = ?').run(files);
    db.close();
    await w.start();
  };
  await given('{}');
  await rejects(w.client.vm.start({ vm: 'damaged' }), 'guest', /the daemon cannot read what that is/);
  assert.deepEqual([(await provisionOf('damaged'))?.state, await linesOf(ran)], ['failed', []]);
  await given('[]');
  await w.client.vm.restart({ vm: 'damaged' });
  assert.deepEqual([(await provisionOf('damaged'))?.state, await linesOf(ran)], ['done', ['']]);
  await s.clear();
});

test('a pause does not count, and a VM can be stopped and deleted meanwhile', async () => {
  const { script, inside, go } = slow('paused');
  const vm = await create('paused', { first_boot: script });
  const start = w.client.vm.start({ vm: 'paused' });
  start.catch(() => {});
  await inside();
  const text = textOf(vm);
  const commands = (await w.client.exec.list({ vm: 'paused' })).map(({ command }) => command);
  assert.match(
    commands.join('\n'),
    /^\/bin\/sh -c exec 2>&1; exec "\$@" first-boot \/bin\/sh \/dev\/shm\/\S+$/,
    'no text',
  );
  assert.deepEqual([(await stat(text)).mode & 0o7777, await readFile(text, 'utf8')], [0o700, script]);
  await w.client.vm.pause({ vm: 'paused' });
  await w.client.vm.resume({ vm: 'paused' });
  await go();
  assert.equal((await start).provision?.state, 'done');
  await assert.rejects(stat(text), /ENOENT/, 'when it has ended');
  const gone = slow('gone');
  const left = await create('gone', { first_boot: gone.script });
  const cut = w.client.vm.start({ vm: 'gone' });
  cut.catch(() => {});
  await gone.inside();
  await w.client.vm.delete({ vm: 'gone' });
  await assert.rejects(cut);
  await rm(textOf(left));
  await s.clear();
});

test('a guest that stands still in the middle of the script has its time, and no more', {
  timeout: 120_000,
}, async () => {
  const { fault, state, provision } = await frozen;
  assert.match(fault.message, /the guest did not say how its first-boot script ended within 31 s\.$/);
  assert.deepEqual([fault.reason, state, provision?.reason], ['timeout', 'running', 'timeout']);
});
