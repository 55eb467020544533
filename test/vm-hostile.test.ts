/**
 * VMMs and guests that die, hang, refuse, lie and flood at each phase and on each socket, a dozen at a time under one daemon, on both stand-ins. A good VM
 * beside them works on; the daemon answers, its memory is bounded, what it says of each is true, and each can be deleted.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { Unreachable } from '../src/client/transport.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { audit } from './kit/audit.ts';
import { settle } from './kit/crash_deeds.ts';
import { FOES, type Foe } from './kit/foes.ts';
import { type Ground, ground, truthful } from './kit/ground.ts';
import type { World } from './kit/world.ts';

/** So many at once. */
const BAND = 12;
/** Generous: others work on this machine. Alone it is some milliseconds. */
const ANSWER_MS = 10_000;
const GROWN_MIB = 200;

const memoryMib = async ({ w }: Ground): Promise<number> =>
  Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${w.daemon().pid}/status`, 'utf8'))?.[1]) / 1024;

/** The worst that was seen of the daemon. */
interface Worst {
  answer_ms: number;
  grown_mib: number;
}

/** Looks at the daemon, as others would, as long as it goes on. */
const watch = async (g: Ground, base_mib: number, worst: Worst, over: AbortSignal): Promise<void> => {
  while (!over.aborted) {
    const from = performance.now();
    try {
      await g.w.client.vm.list({});
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error; // it is being killed
      await sleep(20);
      continue;
    }
    worst.answer_ms = Math.max(worst.answer_ms, performance.now() - from);
    worst.grown_mib = Math.max(worst.grown_mib, (await memoryMib(g)) - base_mib);
    await sleep(20);
  }
};

const wordsOf = ({ manner }: Foe): string => JSON.stringify(manner);

/** A start that hangs fails in the end: on a busy machine it may have done so before it is looked at. */
const comes = async (w: World, id: string, foe: Foe): Promise<void> => {
  const { state, error } = await poll(`${wordsOf(foe)} to be ${foe.state}`, 60_000, async () => {
    await w.client.vm.inspect({ vm: id });
    const vm = await w.client.vm.get({ vm: id });
    if (vm.state === 'starting') return foe.state === 'starting' && vm.pid !== null ? vm : undefined;
    return vm.state === foe.state || (vm.state === 'failed' && foe.state === 'starting') ? vm : undefined;
  });
  if (state === 'failed') assert.equal(error?.code, 'vmm', `${wordsOf(foe)}: ${error?.detail}`);
};

const well = async ({ client }: World): Promise<void> => {
  const { stdout } = await execResult(client.exec.run({ vm: 'good', argv: ['echo', 'well'] }));
  assert.equal(stdout.toString(), 'well\n');
};

/** Starts them all at once, looks at them, and deletes them. */
const band = async (g: Ground, foes: readonly Foe[], meanwhile: (ids: string[]) => Promise<void>): Promise<void> => {
  const { w } = g;
  const vms: { id: string; foe: Foe }[] = [];
  for (const [i, foe] of foes.entries()) {
    const { id } = await w.client.vm.create({ name: `foe${i}`, memory_mib: 64 });
    await g.behave(foe.manner, id);
    vms.push({ id, foe });
  }
  const ids = vms.map(({ id }) => id);
  const starts = ids.map(vm => w.client.vm.start({ vm, wait: 'running' }).catch((e: Fault) => e));
  await Promise.all(vms.map(({ id, foe }) => comes(w, id, foe)));
  const hung = vms.filter(({ foe }) => foe.state === 'starting').map(({ id }) => id);
  assert.deepEqual(await truthful(w, hung), []);
  await well(w);
  await meanwhile(ids);
  await Promise.all(ids.map(vm => w.client.vm.delete({ vm })));
  await Promise.all(starts);
  assert.deepEqual(await audit(w), []);
};

/** The next daemon finds them as they are, and each can be stopped politely. */
const adopted = async (w: World, ids: readonly string[]): Promise<void> => {
  await w.kill();
  await w.start();
  for (const { state, name } of await w.client.vm.list({})) assert.equal(state, 'running', name);
  assert.deepEqual(await truthful(w), []);
  await well(w);
  const half = ids.filter((_, i) => i % 2 === 1);
  const from = performance.now();
  const stopped = await Promise.all(half.map(vm => w.client.vm.stop({ vm, timeout_ms: 500 })));
  for (const { state, name } of stopped) assert.equal(state, 'stopped', name);
  const took = performance.now() - from;
  assert.ok(took < ANSWER_MS, `a stop with half a second of time took ${took} ms`);
};

for (const vmm of ['qemu', 'firecracker'] as const) {
  test(`a hostile ${vmm} and its guest: the daemon answers, tells the truth, and deletes them`, {
    timeout: 300_000,
  }, async t => {
    await using g = await ground(vmm);
    const { w } = g;
    await settle(() => g);
    await w.client.vm.create({ name: 'good', memory_mib: 64 });
    await w.client.vm.start({ vm: 'good' });
    const worst: Worst = { answer_ms: 0, grown_mib: 0 };
    const over = new AbortController();
    const watched = watch(g, await memoryMib(g), worst, over.signal);
    watched.catch(() => {}); // heard below
    try {
      const { up, life } = FOES[vmm];
      for (let at = 0; at < up.length; at += BAND) {
        await band(g, up.slice(at, at + BAND), async () => {});
      }
      await band(g, life, ids => adopted(w, ids));
    } finally {
      over.abort();
      await watched;
    }
    t.diagnostic(
      `an answer took ${worst.answer_ms.toFixed(0)} ms and the daemon grew by ${worst.grown_mib.toFixed(0)} MiB at most`,
    );
    assert.ok(worst.answer_ms < ANSWER_MS, `an answer took ${worst.answer_ms} ms`);
    assert.ok(worst.grown_mib < GROWN_MIB, `the daemon grew by ${worst.grown_mib} MiB`);
    await w.client.vm.delete({ vm: 'good' });
    assert.deepEqual(await audit(w), []);
  });
}
