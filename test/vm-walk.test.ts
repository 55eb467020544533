/**
 * Four clients do at random what clients may do. Whatever they do: never two VMMs for one VM, never one disk at two VMs, no
 * transition beside the table, no fault that is not foreseen, and nothing left at the end.
 */
import assert from 'node:assert/strict';
import process from 'node:process';
import { test } from 'node:test';
import type { Event } from '../src/api/event.ts';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import { VM_LIVE, VM_TRANSITIONS, type VmState } from '../src/api/vm_state.ts';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { killVmm, nothingLeft, stage, vmmsByVm } from './kit/behave.ts';
import type { World } from './kit/world.ts';

const CLIENTS = 4;
/** Many are refused at once, for another client was faster. */
const OPERATIONS = 400;
const NAMES = ['ann', 'bob', 'eve'];
const DISKS = ['d0', 'd1'];

/** mulberry32: small, and the same walk for the same seed. */
const random = (seed: number): (() => number) => {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
};

const RACES: readonly FaultCode[] = ['not_found', 'exists', 'bad_state', 'in_use', 'busy', 'canceled'];

interface Step {
  name: string;
  weight: number;
  run: (w: World, pick: (from: readonly string[]) => string) => Promise<unknown>;
  /** Faults besides those of a race. */
  may?: readonly FaultCode[];
}

const STEPS: readonly Step[] = [
  {
    name: 'create',
    weight: 5,
    run: (w, pick) => w.client.vm.create({ name: pick(NAMES), memory_mib: 64 }),
  },
  { name: 'create --ws', weight: 1, run: (w, pick) => w.client.vm.create({ name: pick(NAMES), ws: pick(DISKS) }) },
  // vmm: it was killed meanwhile
  { name: 'start', weight: 10, run: (w, pick) => w.client.vm.start({ vm: pick(NAMES) }), may: ['vmm'] },
  {
    name: 'start --wait none',
    weight: 2,
    run: (w, pick) => w.client.vm.start({ vm: pick(NAMES), wait: 'none' }),
    may: ['vmm'],
  },
  { name: 'stop', weight: 2, run: (w, pick) => w.client.vm.stop({ vm: pick(NAMES) }) },
  { name: 'stop --force', weight: 2, run: (w, pick) => w.client.vm.stop({ vm: pick(NAMES), force: true }) },
  // vmm: it was killed meanwhile
  { name: 'pause', weight: 2, run: (w, pick) => w.client.vm.pause({ vm: pick(NAMES) }), may: ['vmm'] },
  { name: 'resume', weight: 3, run: (w, pick) => w.client.vm.resume({ vm: pick(NAMES) }), may: ['vmm'] },
  { name: 'restart', weight: 2, run: (w, pick) => w.client.vm.restart({ vm: pick(NAMES) }), may: ['vmm', 'timeout'] },
  {
    name: 'wait',
    weight: 1,
    run: (w, pick) => w.client.vm.wait({ vm: pick(NAMES), timeout_ms: 200 }),
    may: ['vmm', 'timeout'],
  },
  { name: 'delete', weight: 1, run: (w, pick) => w.client.vm.delete({ vm: pick(NAMES) }) },
  {
    name: 'exec',
    weight: 6,
    run: (w, pick) => execResult(w.client.exec.run({ vm: pick(NAMES), argv: ['true'] })),
    may: ['guest'],
  },
  {
    name: 'kill the VMM',
    weight: 1,
    run: async (w, pick) => killVmm(w, (await w.client.vm.get({ vm: pick(NAMES) })).id),
  },
  {
    name: 'attach',
    weight: 2,
    run: (w, pick) => w.client.ws.attach({ ws: pick(DISKS), vm: pick(NAMES) }),
  },
  { name: 'detach', weight: 2, run: (w, pick) => w.client.ws.detach({ ws: pick(DISKS) }) },
  { name: 'remove the disk', weight: 1, run: (w, pick) => w.client.ws.remove({ ws: pick(DISKS) }) },
  {
    name: 'make the disk',
    weight: 1,
    run: (w, pick) => w.client.ws.create({ name: pick(DISKS), size_bytes: 16 * 1024 * 1024 }),
  },
];

/** What must be true at every moment. A look at all processes takes its time: only who was there at two looks was there together. */
const check = async (w: World): Promise<void> => {
  const before = await vmmsByVm(w);
  if ([...before.values()].every(pids => pids.length === 1)) return;
  for (const [id, pids] of await vmmsByVm(w)) {
    const both = pids.filter(pid => before.get(id)?.includes(pid));
    assert.ok(both.length <= 1, `two VMMs of ${id}: ${both.join(' ')}`);
  }
};

/** Every VM's states, as its events told them, are a way through the table. */
const checkWays = (events: readonly Event[]): void => {
  const at = new Map<string, VmState>();
  for (const { type, subject, data } of events) {
    if (type === 'vm.deleted') at.delete(subject);
    if (type !== 'vm.state') continue;
    const to = data.state as VmState;
    const from = at.get(subject);
    if (from === undefined) assert.equal(to, 'created', subject);
    else assert.ok(VM_TRANSITIONS[from].includes(to), `${subject}: ${from} to ${to}`);
    at.set(subject, to);
  }
};

test('a random walk of four clients', { timeout: 120_000 }, async t => {
  const seed = Number(process.env.NEXUS_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
  t.diagnostic(`NEXUS_TEST_SEED=${seed}`);
  const next = random(seed);
  await using s = await stage();
  const { w } = s;
  const events: Event[] = [];
  const watching = new AbortController();
  const watched = (async () => {
    for await (const e of w.client.event.watch({}, { signal: watching.signal })) {
      assert.ok('seq' in e, 'no event was missed');
      events.push(e);
    }
  })().catch((e: unknown) => e);
  await sleep(50);
  for (const name of NAMES) await w.client.vm.create({ name, memory_mib: 64 });
  const all = STEPS.flatMap(step => Array<Step>(step.weight).fill(step));
  const done = new Map<string, number>();
  let left = OPERATIONS;
  const client = async () => {
    while (left-- > 0) {
      const step = all[Math.floor(next() * all.length)];
      assert.ok(step);
      const pick = (from: readonly string[]) => from[Math.floor(next() * from.length)] ?? '';
      try {
        await step.run(w, pick);
        done.set(step.name, (done.get(step.name) ?? 0) + 1);
      } catch (error) {
        assert.ok(error instanceof Fault, `${step.name}: ${error}`);
        const known = RACES.includes(error.code) || step.may?.includes(error.code);
        assert.ok(known, `${step.name}: ${error.code}: ${error.message}`);
      }
      await check(w);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  t.diagnostic(JSON.stringify(Object.fromEntries(done)));
  const successes = [...done.values()].reduce((sum, n) => sum + n, 0);
  assert.ok(successes > 40 && done.has('start'), 'nothing much was done');
  const running = await vmmsByVm(w);
  for (const vm of await w.client.vm.list({})) {
    if (vm.state === 'starting') continue; // by a start that nobody waited for
    const alive = running.has(vm.id);
    if (!VM_LIVE.includes(vm.state)) assert.ok(!alive, `${vm.name} is ${vm.state} and has a VMM`);
    const ways = await w.client.vm.history({ vm: vm.id });
    for (const [i, h] of ways.entries()) assert.equal(h.from, ways[i + 1]?.to ?? null, JSON.stringify(ways));
  }
  for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
  await nothingLeft(w);
  await poll('the last event', 5000, () => {
    const open = new Set(events.filter(e => e.type === 'vm.state').map(e => e.subject));
    for (const e of events) if (e.type === 'vm.deleted') open.delete(e.subject);
    return open.size === 0 || undefined;
  });
  watching.abort(new Error('seen enough'));
  assert.equal(await watched, watching.signal.reason, 'the stream of events broke off');
  checkWays(events);
  const log = await w.log();
  assert.ok(!log.includes('"level":50'), log);
});
