/** vm.update_agent through the door: on the stand-in, and in a guest whose PID 1 the agent is. */
import assert from 'node:assert/strict';
import { appendFile, copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { agentBinaries } from './kit/agent.ts';
import { rejects, stage } from './kit/behave.ts';
import { sh } from './kit/life.ts';
import { type World, world } from './kit/world.ts';

/** A folder with another agent for a daemon: `program` with something behind its end. */
const agentDir = async (program: string) => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-agent-'));
  const { probe } = await agentBinaries();
  await copyFile(probe, join(dir, 'nexus-probe'));
  for (const arch of ['x86_64', 'aarch64']) {
    await copyFile(program, join(dir, `nexus-agent-${arch}`));
    await appendFile(join(dir, `nexus-agent-${arch}`), 'another one');
  }
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

/** Counts while the agent is replaced, and finds all again afterwards. */
const goesOn = async (w: World, vm: string, dir: string): Promise<void> => {
  const lines = 60;
  const script = `i=0; while [ $i -lt ${lines} ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 5`;
  const keyed = { vm, argv: ['/bin/sh', '-c', 'mktemp -u'], idempotency_key: 'once' };
  const name = (await execResult(w.client.exec.run(keyed))).stdout.toString();
  await w.stop();
  await w.start({ NEXUS_AGENT_DIR: dir });
  await w.client.vm.wait({ vm });
  const counting = execResult(w.client.exec.run({ vm, argv: ['/bin/sh', '-c', script] }));
  const before = await w.client.vm.get({ vm });
  const out = await w.ctl('vm', 'update-agent', vm, '--json');
  assert.equal(out.code, 0, out.stderr);
  const first = JSON.parse(out.stdout);
  assert.equal(first.updated, true);
  assert.notEqual(first.before.sha256, first.after.sha256);
  const second = await w.client.vm.update_agent({ vm });
  assert.deepEqual(second, { updated: false, before: first.after, after: first.after });
  const { exit_code, stdout, truncated } = await counting;
  assert.deepEqual([exit_code, truncated], [5, false]);
  assert.equal(stdout.toString(), Array.from({ length: lines }, (_, n) => `${n}\n`).join(''));
  assert.equal((await execResult(w.client.exec.run(keyed))).stdout.toString(), name, 'it did not run twice');
  const after = await w.client.vm.get({ vm });
  assert.deepEqual(
    [after.pid, after.guest, after.guest_facts?.boot_id],
    [before.pid, 'ready', before.guest_facts?.boot_id],
  );
};

test('through the door and nexusctl, on the stand-in', { timeout: 400_000 }, async () => {
  await using s = await stage('qemu');
  const { id } = await s.create('a');
  await rejects(s.w.client.vm.update_agent({ vm: id }), 'bad_state', /it was never started/);
  await s.w.client.vm.start({ vm: id });
  await rejects(s.w.client.vm.update_agent({ vm: id }), 'invalid', /no agent of this kind/); // a harness takes harnesses alone
  await using other = await agentDir((await agentBinaries()).harness);
  await goesOn(s.w, id, other.dir);
  await s.w.client.vm.stop({ vm: id });
  await s.clear();
});

test('in a guest whose PID 1 it is', { timeout: 400_000 }, async t => {
  await using w = await world({ qemu: 'real', seed: 'booted' });
  const { id } = await w.client.vm.create({ name: 'box', memory_mib: 512 });
  await w.client.vm.start({ vm: id, timeout_ms: 180_000 });
  const facts = async () =>
    (await sh(w, id, 'cat /proc/1/comm; hostname; cat /proc/sys/kernel/random/boot_id')).stdout.toString();
  await sh(w, id, 'hostname another; (sleep 20; echo late >/run/late) >/dev/null 2>&1 &');
  const was = await facts();
  await using other = await agentDir((await agentBinaries()).agent_x86_64);
  const from = performance.now();
  await goesOn(w, id, other.dir);
  t.diagnostic(`${Math.round(performance.now() - from)} ms`);
  assert.equal(await facts(), was);
  const descriptors = (await sh(w, id, 'ls -l /proc/1/fd | grep -c "state\\|memfd"')).stdout.toString().trim();
  assert.equal(descriptors, '0', 'nothing of the update stays open');
  // as PID 1 it still takes orphans, and takes the machine down
  await poll('what was left to PID 1', 60_000, async () => {
    const { stdout } = await sh(w, id, 'cat /run/late; ps -eo stat,ppid 2>/dev/null | grep -c "^Z" ');
    return /late/.test(stdout.toString()) || undefined;
  });
  const stopped = await w.client.vm.stop({ vm: id });
  assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
  await w.client.vm.delete({ vm: id });
});
