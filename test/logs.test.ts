/** Consoles through the door: over boots, since a time. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import type { OpArgs } from '../src/api/ops.ts';
import { poll, sleep, withDeadline } from '../src/lib/deadline.ts';
import { killVmm, nothingLeft, rejects, staged, until } from './kit/behave.ts';
import { REPO } from './kit/world.ts';

const s = await staged();
const { w, create } = s;
const text = (m: { type: string; line?: string; detail?: string }) => m.line ?? m.detail ?? m.type;
/** Without the time in front of our own lines. */
const bare = (lines: string[]) => lines.map(line => line.replace(/^--- [^ ]+Z: /, '--- '));
const logs = async (args: OpArgs<'vm.logs'>) => bare(await Array.fromAsync(w.client.vm.logs(args), text));
const DOWN = 'reboot: Restarting system';
const START = /^--- start of VM '[a-z]+', kernel /;

test('boots by their number, over stops, crashes and the death of the daemon', async () => {
  const { id } = await create('boots');
  await rejects(logs({ vm: id, boot: -1 }), 'not_found', /no boot -1/);
  for (const n of [1, 2, 3]) {
    await s.behave({ CONSOLE: `this is ${n}\r\n` });
    await w.client.vm.start({ vm: id });
    if (n === 2) assert.ok(await killVmm(w, id));
    else await w.client.vm.stop({ vm: id });
    await until(w, id, n === 2 ? 'crashed' : 'stopped');
  }
  const boot = async (n: number) => {
    const [start = '', ...rest] = await logs({ vm: id, boot: n });
    assert.match(start, START);
    return rest;
  };
  assert.deepEqual(await boot(0), ['this is 3', 'reboot: Restarting system', 'end']);
  assert.deepEqual(await boot(-1), ['this is 2', 'end']);
  assert.deepEqual(await boot(-2), ['this is 1', 'reboot: Restarting system', 'end']);
  await rejects(logs({ vm: id, boot: -3 }), 'not_found', /There is no boot -3 of this VM: there were 3/);
  assert.deepEqual(await logs({ vm: id, boot: -1, tail: 1 }), ['this is 2', 'end']);
  await w.kill();
  await w.start();
  await s.behave({ CONSOLE: 'this is 4\r\n' });
  await w.client.vm.start({ vm: id });
  assert.deepEqual(await boot(0), ['this is 4', 'end']);
  assert.deepEqual(await boot(-2), ['this is 2', 'end']);
  const said = await w.ctl('vm', 'logs', 'boots', '--boot', '-1');
  assert.equal(said.code, 0, said.stderr);
  assert.match(said.stdout, /^--- .*Z: start of VM 'boots'.*\nthis is 3\nreboot: Restarting system\n$/);
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('since a time', async () => {
  const { id } = await create('since');
  await s.behave({ CONSOLE: 'old\r\n' });
  await w.client.vm.start({ vm: id });
  await w.client.vm.stop({ vm: id });
  await sleep(3200);
  await s.behave({ CONSOLE: 'new\r\n' });
  const began = Date.now();
  await w.client.vm.start({ vm: id });
  const recent = await logs({ vm: id, since_ms: Date.now() - began + 500 });
  assert.match(recent[0] ?? '', START);
  assert.deepEqual(recent.slice(1), ['new', 'end']);
  assert.ok((await logs({ vm: id, since_ms: 60_000 })).includes('old'));
  assert.deepEqual(await logs({ vm: id, since_ms: 60_000, boot: 0, tail: 1 }), ['new', 'end']);
  const said = await w.ctl('logs', 'since', '--since', '5m');
  assert.match(said.stdout, /\nold\n[\s\S]*\nnew\n/, said.stderr);
  assert.equal((await w.ctl('logs', 'since', '--since', 'yesterday')).code, 2);
  await w.client.vm.delete({ vm: id });
});

test('followed over a restart; it ends when the VM is down for good, and when it is deleted', async () => {
  const { id } = await create('follows');
  await s.behave({ CONSOLE: 'first\r\n' });
  await w.client.vm.start({ vm: id });
  const lines: string[] = [];
  const followed = (async () => {
    for await (const m of w.client.vm.logs({ vm: id, follow: true })) lines.push(...bare([text(m)]));
  })();
  await poll('the first line', 5000, () => lines.includes('first') || undefined);
  await s.behave({ CONSOLE: 'second\r\n' });
  await w.client.vm.restart({ vm: id });
  await poll('the second boot', 5000, () => lines.includes('second') || undefined);
  await w.client.vm.update({ vm: id, restart: 'on-crash' });
  await s.behave({ CONSOLE: 'third\r\n' });
  assert.ok(await killVmm(w, id));
  await poll('the third boot', 20_000, () => lines.includes('third') || undefined);
  await w.client.vm.stop({ vm: id });
  await followed;
  assert.deepEqual(
    lines.map(line => (START.test(line) ? 'start' : line)),
    ['start', 'first', DOWN, 'start', 'second', 'start', 'third', DOWN, 'end'],
    'each line once',
  );
  await w.client.vm.start({ vm: id });
  const last = logs({ vm: id, follow: true, tail: 0 });
  await sleep(100);
  await w.client.vm.delete({ vm: id });
  assert.equal((await last).at(-1), 'end');
  await nothingLeft(w);
});

/** `nexusctl`, with what it has printed so far. */
const following = (...args: string[]) => {
  const argv = [join(REPO, 'src/main.ts'), 'nexusctl', '--socket', w.socket, ...args];
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  let printed = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    printed += piece;
  });
  return {
    see: (line: string) => poll(`'${line}'`, 30_000, () => printed.includes(`\n${line}\n`) || undefined),
    end: async () => {
      await withDeadline('the end of nexusctl', 30_000, closed);
      return { code: child.exitCode, printed };
    },
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      await closed;
    },
  };
};

test('as it is typed: a VM made, found by state and tag, its log followed over a crash, the boot before', async () => {
  const typed = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await w.ctl(...args);
    assert.equal(code, 0, stderr);
    return stdout;
  };
  const image = (await w.client.image.list({}))[0]?.name ?? '';
  const words = ['--vcpus', '2', '--memory', '512M', '--restart', 'on-crash'];
  await typed('vm', 'create', 'typed', '--image', image, ...words, '--tag', 'team=a');
  await typed('vm', 'create', 'idle', '--image', image, '--tag', 'team=a');
  await typed('vm', 'create', 'theirs', '--image', image, '--tag', 'team=b');
  const { id, ...vm } = await w.client.vm.get({ vm: 'typed' });
  assert.deepEqual([vm.vcpus, vm.memory_mib, vm.restart], [2, 512, 'on-crash']);
  await s.behave({ CONSOLE: 'one\r\n' });
  for (const name of ['typed', 'theirs']) await w.client.vm.start({ vm: name });
  const found = JSON.parse(await typed('vm', 'list', '--state', 'running', '--tag', 'team=a', '--json'));
  assert.deepEqual(
    found.map((one: { name: string }) => one.name),
    ['typed'],
  );
  await using follower = following('vm', 'logs', 'typed', '-f', '--since', '5m');
  await follower.see('one');
  await s.behave({ CONSOLE: 'two\r\n' });
  assert.ok(await killVmm(w, id));
  await follower.see('two');
  await until(w, id, 'running', 30_000);
  await w.client.vm.stop({ vm: id });
  const { code, printed } = await follower.end();
  assert.equal(code, 0);
  assert.equal(printed.match(/^(one|two)$/gm)?.join(), 'one,two', printed);
  assert.match(await typed('vm', 'logs', 'typed', '--boot', '-1'), /^--- .*Z: start of VM 'typed'.*\none\n$/);
  await s.clear();
});
