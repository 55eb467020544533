/**
 * A random walk of several clients at once. Each has a VM and a disk of its own, of which it knows at every moment what must come of a verb (the table
 * of states is its model); others they share, and there only some faults may come. VMMs are killed and stopped from outside, and the daemon is
 * killed in the middle of it all.
 *
 * The same seed gives each client the same walk; how the walks meet is up to the machine.
 */
import assert from 'node:assert/strict';
import { readdir, readlink } from 'node:fs/promises';
import type { Event } from '../../src/api/event.ts';
import { Fault } from '../../src/api/fault.ts';
import { VM_TRANSITIONS, VmState } from '../../src/api/vm_state.ts';
import { Unreachable } from '../../src/client/transport.ts';
import { poll, sleep } from '../../src/lib/deadline.ts';
import { vmmsByVm } from './behave.ts';
import { truthful } from './ground.ts';
import { type Client, type Own, STEPS } from './walk_steps.ts';
import type { World } from './world.ts';

/** Steps of each client between two looks at what should then be at rest. */
const ROUND = 25;
/** Between two looks at what must be true at every moment. */
const LOOK_MS = 100;

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

/** Disks that are open in a VMM, by their path: its processes. */
const openDisks = async (w: World): Promise<Map<string, number[]>> => {
  const found = new Map<string, number[]>();
  for (const pid of await w.vmms()) {
    const dir = `/proc/${pid}/fd`;
    const open = await Promise.all(
      (await readdir(dir).catch(() => [])).map(fd => readlink(`${dir}/${fd}`).catch(() => '')),
    );
    for (const path of new Set(open.filter(target => target.includes('/workspaces/'))))
      found.set(path, [...(found.get(path) ?? []), pid]);
  }
  return found;
};

/** Those that have more than one at both looks: a look takes its time, and only who was there twice was there together. */
const twice = (before: Map<string, number[]>, after: Map<string, number[]>): string[] =>
  [...after].flatMap(([key, pids]) => {
    const both = pids.filter(pid => before.get(key)?.includes(pid));
    return both.length > 1 ? [`${key}: ${both.join(' ')}`] : [];
  });

/** What must be true at every moment: one VMM a VM, one VMM a disk. */
const watchVmms = async (w: World, signal: AbortSignal): Promise<void> => {
  let [vms, disks] = [await vmmsByVm(w), await openDisks(w)];
  while (!signal.aborted) {
    await sleep(LOOK_MS);
    const now = [await vmmsByVm(w), await openDisks(w)] as const;
    assert.deepEqual([...twice(vms, now[0]), ...twice(disks, now[1])], [], 'two VMMs on one VM or one disk');
    [vms, disks] = now;
  }
};

/** Every VM's states, as its events tell them, are a way through the table. */
const checkWay = (at: Map<string, VmState>, { type, subject, data }: Event): void => {
  if (type === 'vm.deleted') at.delete(subject);
  if (type !== 'vm.state') return;
  const to = VmState.parse(data.state);
  const from = at.get(subject);
  assert.ok(from === undefined || VM_TRANSITIONS[from].includes(to), `${subject}: ${from} to ${to}`);
  at.set(subject, to);
};

const watchWays = async (w: World, signal: AbortSignal): Promise<void> => {
  while (!signal.aborted) {
    const at = new Map<string, VmState>(); // what came while nobody listened is not known
    try {
      for await (const event of w.client.event.watch({}, { signal })) if ('seq' in event) checkWay(at, event);
    } catch (error) {
      if (signal.aborted || !(error instanceof Unreachable)) throw error;
      await sleep(20);
    }
  }
};

/** What the daemon that came back says of what is the client's own. */
const learn = async ({ w, own }: Client): Promise<void> => {
  const find = <T>(asked: Promise<T>): Promise<T | undefined> =>
    asked.catch(error => {
      if (error instanceof Fault && error.code === 'not_found') return undefined;
      throw error;
    });
  own.state = await poll(`${own.vm} to come to rest`, 30_000, async () => {
    const vm = await find(w.client.vm.get({ vm: own.vm }));
    if (vm === undefined) return 'absent';
    // a restart that was cut off is owed
    return vm.state === 'starting' || vm.state === 'stopping' || vm.restart_at_ms !== null ? undefined : vm.state;
  });
  const disk = await find(w.client.ws.inspect({ ws: own.disk }));
  own.attached = disk === undefined ? 'absent' : disk.vm_id === null ? 'free' : 'attached';
};

/** The daemon was killed; meanwhile it may be killed again. One that ended by itself stays away, and that is an error. */
const recover = async (client: Client, up: () => Promise<void>): Promise<void> => {
  for (let tries = 1; ; tries++) {
    try {
      await up();
      return await learn(client);
    } catch (error) {
      if (!(error instanceof Unreachable) || tries > 20) throw error;
      await sleep(50);
    }
  }
};

/** At rest the API tells the truth, nothing is left over, every client knows its own, and no lock is held. */
const checkRest = async (w: World, clients: readonly Client[]): Promise<void> => {
  assert.deepEqual(await truthful(w), []);
  const vms = await w.client.vm.list({});
  for (const { own } of clients) assert.equal(vms.find(vm => vm.name === own.vm)?.state ?? 'absent', own.state, own.vm);
  for (const { id, name } of vms) {
    const ways = await w.client.vm.history({ vm: id });
    for (const [i, h] of ways.entries())
      assert.equal(h.from, ways[i + 1]?.to ?? (ways.length < 100 ? null : h.from), name);
    await w.client.vm.resume({ vm: id }).catch((error: unknown) => {
      assert.ok(error instanceof Fault && error.code === 'bad_state', `${name}: ${error}`); // and not `busy`
    });
  }
  for (const client of clients) await learn(client); // one that was paused goes on
};

export interface WalkOptions {
  seed: number;
  clients: number;
  /** Of each client. */
  steps: number;
}

/** Throws at the first thing that is not as it must be; gives how often what was done. */
export const walk = async (w: World, options: WalkOptions): Promise<Record<string, number>> => {
  const done: Record<string, number> = {};
  let up: Promise<void> = Promise.resolve();
  const clients = Array.from({ length: options.clients }, (_, n): Client & { next: () => number } => {
    const next = random(options.seed + n * 7919);
    const own: Own = { vm: `own-${n}`, disk: `disk-${n}`, state: 'absent', attached: 'absent' };
    const restart = () => {
      up = w.kill().then(() => w.start());
      return up;
    };
    const pick = <T>(from: readonly T[]): T =>
      from[Math.floor(next() * from.length)] ?? assert.fail('nothing to pick from');
    return { w, own, next, pick, restart: n === 0 ? restart : undefined };
  });
  const take = async (client: Client): Promise<void> => {
    const step = client.pick(STEPS);
    try {
      await step.run(client);
      done[step.name] = (done[step.name] ?? 0) + 1;
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      await recover(client, () => up);
    }
  };
  const over = new AbortController();
  const watching = [watchVmms(w, over.signal), watchWays(w, over.signal)];
  const watched = Promise.all(watching);
  watched.catch(() => {});
  const round = async (client: Client): Promise<void> => {
    for (let i = 0; i < ROUND; i++) await take(client);
  };
  try {
    for (let at = 0; at < options.steps; at += ROUND) {
      const walked = Promise.all(clients.map(round));
      await Promise.race([walked, watched.then(() => walked)]);
      await checkRest(w, clients);
    }
  } finally {
    over.abort();
  }
  await watched.catch((error: unknown) => {
    if (error !== over.signal.reason) throw error;
  });
  return done;
};
