/** What the agent must bear as a unit of systemd, in a machine without a daemon. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { poll } from '../../src/lib/deadline.ts';
import { fault } from '../standin/vmm.ts';
import { anotherAgent } from './agent.ts';
import type { BareMachine } from './machine.ts';
import { start } from './stress.ts';

/** What the command wrote, and how it ended. */
export const sh = async (m: BareMachine, script: string) => {
  const stream = await start(m.guest, ['/bin/sh', '-c', script]);
  const out = { stdout: '', stderr: '' };
  for await (const piece of stream) if ('data' in piece) out[piece.channel] += piece.data.toString();
  return { ...out, ...(await stream.result) };
};

const MAIN_PID = 'systemctl show -P MainPID nexus-agent';

/** Another program takes the agent's place: systemd sees the same process, and a command goes on. */
export const isReplaced = async (m: BareMachine, t: TestContext, dir: string): Promise<void> => {
  const pid = (await sh(m, MAIN_PID)).stdout;
  const counting = sh(m, 'for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done; exit 4');
  const from = performance.now();
  const { before, after } = await m.guest.update(await anotherAgent(dir), AbortSignal.timeout(120_000));
  t.diagnostic(`another agent after ${Math.round(performance.now() - from)} ms`);
  assert.notEqual(before.sha256, after.sha256);
  assert.equal((await sh(m, MAIN_PID)).stdout, pid);
  assert.equal((await sh(m, 'systemctl show -P ActiveState nexus-agent')).stdout, 'active\n');
  const { stdout, exit_code } = await counting;
  assert.deepEqual([stdout, exit_code], ['1\n2\n3\n4\n5\n6\n7\n8\n', 4]);
};

/** A command that takes all memory is killed, and told so; the agent is spared. */
export const isStarved = async (m: BareMachine): Promise<void> => {
  const pid = (await sh(m, MAIN_PID)).stdout;
  // in its group of processes alone: all of the machine's memory would take long
  assert.equal((await sh(m, 'systemctl set-property --runtime nexus-agent MemoryMax=96M')).exit_code, 0);
  const { exit_code, signal } = await sh(m, 'exec tail /dev/zero');
  assert.deepEqual([exit_code, signal], [null, 'KILL']);
  assert.equal((await sh(m, MAIN_PID)).stdout, pid);
  assert.equal((await sh(m, 'systemctl show -P ActiveState nexus-agent')).stdout, 'active\n');
  const scores = await sh(m, `cat /proc/$(${MAIN_PID})/oom_score_adj /proc/self/oom_score_adj`);
  assert.equal(scores.stdout, '-900\n0\n', 'no command inherits it');
};

/** The agent dies in the middle of a command: it comes back, and what became of the command is not made up. */
export const isKilled = async (m: BareMachine): Promise<void> => {
  const stream = await start(m.guest, ['sh', '-c', 'echo $$; while :; do echo more; sleep 0.2; done >/run/out']);
  const bells = m.bells();
  await sh(m, `kill -KILL $(${MAIN_PID})`).catch(() => {});
  await assert.rejects(stream.result, fault('guest', /is not known: the guest no longer knows it/));
  await poll('the bell', 60_000, async () => m.bells() > bells || undefined);
  assert.equal(
    (await sh(m, `kill -TERM ${stream.pid} && echo ran`)).stdout,
    'ran\n',
    'the command itself was left alone',
  );
};
