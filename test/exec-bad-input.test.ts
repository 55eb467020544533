/** Commands that ask for too much, say too much, or lose their VM; through the door, with the real agent's code. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import process from 'node:process';
import { after, before, test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { procStat } from '../src/lib/proc.ts';
import { killVmm, rejects, type Stage, stage, until } from './kit/behave.ts';
import type { World } from './kit/world.ts';

const MIB = 1024 * 1024;
/** The long form is a gibibyte. */
const OUTPUT_MIB = Number(process.env.NEXUS_TEST_OUTPUT_MIB ?? 256);

let s: Stage;
let w: World;
before(async () => {
  s = await stage();
  w = s.w;
  await s.create('box');
  await w.client.vm.start({ vm: 'box' });
});
after(async () => {
  await s.clear();
  await s[Symbol.asyncDispose]();
});

const run = (argv: string[], more: object = {}) => execResult(w.client.exec.run({ vm: 'box', argv, ...more }));

test('NUL, and more than a kernel takes, are refused by their names', { timeout: 60_000 }, async () => {
  const refused = async (argv: string[], more: object, message: RegExp) =>
    rejects(w.client.exec.run({ vm: 'box', argv, ...more }).next(), 'invalid', message);
  await refused(['echo', 'a\0b'], {}, /argv\[1\].*NUL/);
  await refused(['true'], { env: { A: 'a\0b' } }, /env\.A.*NUL/);
  await refused(['true'], { env: { 'A=B': 'x' } }, /env/);
  await refused(['true'], { cwd: '/tmp\0' }, /cwd.*NUL/);
  await refused(['true'], { env: { A: 'x'.repeat(2 * MIB) } }, /env\.A/);
  const variables = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, n) => [`V${n}`, 'x'.repeat(100_000)]));
  // 2 MiB in parts that are each allowed: a quarter of the stack's limit is for both, execve(2)
  const fault = await refused(['true'], { env: variables(21) }, /argv and env are too big/);
  assert.equal(fault.reason, 'too_big');
  const fits = await run(['sh', '-c', 'printf "$V9" | wc -c'], { env: variables(15) });
  assert.equal(fits.stdout.toString().trim(), '100000');
});

test('who leaves a child that holds the pipes is not waited for, and the child goes on', {
  timeout: 60_000,
}, async () => {
  const from = performance.now();
  const out = await run(['sh', '-c', 'setsid sh -c "sleep 2; echo late; sleep 60" & echo $!']);
  const pid = Number(out.stdout.toString());
  assert.ok(performance.now() - from < 30_000);
  assert.equal(out.exit_code, 0);
  await sleep(3000);
  assert.ok((await procStat(pid)) !== undefined, 'what it writes late does not end it');
  process.kill(-pid, 'SIGKILL');
});

const harnessOf = (vmm: number): Promise<number> =>
  poll('the agent', 10_000, async () => {
    for (const name of await readdir('/proc')) {
      const stat = /^\d+$/.test(name) ? await procStat(Number(name)) : undefined;
      if (stat?.ppid === vmm && (await readFile(`/proc/${name}/cmdline`, 'utf8')).includes('agent-harness'))
        return stat.pid;
    }
    return undefined;
  });

const memoryMib = async (pid: number): Promise<{ now: number; most: number }> => {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const of = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]) / 1024;
  return { now: of('VmRSS'), most: of('VmHWM') };
};

test(`${OUTPUT_MIB} MiB of output to a slow client, in bounded memory`, {
  timeout: 60_000 + OUTPUT_MIB * 2000,
}, async t => {
  const { pid } = await w.client.vm.get({ vm: 'box' });
  const agent = await harnessOf(pid ?? 0);
  const pids = { daemon: w.daemon().pid, agent };
  const before = { daemon: await memoryMib(pids.daemon), agent: await memoryMib(pids.agent) };
  const size = OUTPUT_MIB * MIB;
  let got = 0;
  let pause = 4 * MIB;
  for await (const message of w.client.exec.run({ vm: 'box', argv: ['head', '-c', String(size), '/dev/zero'] })) {
    assert.notEqual(message.type, 'gap');
    if (message.type === 'exit') assert.equal(message.exit_code, 0);
    if (message.type !== 'stdout') continue;
    got += Buffer.byteLength(message.data, 'base64');
    if (got < pause) continue;
    await sleep(got < 16 * MIB ? 500 : 5); // all that is between us fills up
    pause = got + 4 * MIB;
  }
  assert.equal(got, size);
  const grown = {
    daemon: Math.round((await memoryMib(pids.daemon)).most - before.daemon.now),
    agent: Math.round((await memoryMib(pids.agent)).most - before.agent.now),
  };
  t.diagnostic(`grown, MiB: ${JSON.stringify(grown)}`);
  assert.ok(grown.daemon < 120, `the daemon grew by ${grown.daemon} MiB`);
  assert.ok(grown.agent < 20, `the agent grew by ${grown.agent} MiB`);
});

test('a VM that is stopped, or dies, in the middle of output: what came is there, and the fault says how it was', {
  timeout: 120_000,
}, async () => {
  for (const [end, why] of [
    [() => w.client.vm.stop({ vm: 'box', force: true }), /VM 'box' has ended: .*force/],
    [async () => killVmm(w, (await w.client.vm.get({ vm: 'box' })).id), /VM 'box' has (?:crashed|ended): .*SIGKILL/],
  ] as const) {
    const stream = w.client.exec.run({
      vm: 'box',
      argv: ['sh', '-c', 'echo first; while sleep 0.2; do echo >&2; done'],
    });
    let got = '';
    const reading = (async () => {
      for await (const message of stream) if (message.type === 'stdout') got += Buffer.from(message.data, 'base64');
    })();
    reading.catch(() => {}); // awaited below
    await poll('output', 20_000, () => got !== '' || undefined);
    const from = performance.now();
    const ended = end();
    await rejects(reading, 'guest', why);
    assert.ok(performance.now() - from < 15_000);
    await ended;
    assert.equal(got, 'first\n');
    await poll(
      'its end',
      20_000,
      async () => ['stopped', 'crashed'].includes((await w.client.vm.get({ vm: 'box' })).state) || undefined,
    );
    await w.client.vm.start({ vm: 'box' });
    await until(w, 'box', 'running');
  }
});
