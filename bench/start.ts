/** What a start costs: time, and the daemon's own processor time. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import process from 'node:process';
import type { VmmKind } from '../src/api/vm.ts';
import type { World } from '../test/kit/world.ts';
import { type Figure, shipped, timed } from './kit.ts';

const WARM_UP = 10;
const STARTS = 40;
const AT_ONCE = 20;

/** Request to spawn, plus bell to reply: what a start costs beside the VMM and the guest. */
export const startShare = async (w: World): Promise<Figure> => {
  await w.client.vm.create({ name: 'share', memory_mib: 64 });
  const abort = new AbortController();
  let marks = Promise.withResolvers<{ spawn_ms: number; bell_ms: number }>();
  const watch = (async () => {
    // one for all starts: to open it is no part of any
    for await (const event of w.client.event.watch({}, { signal: abort.signal })) {
      if (event.type !== 'vm.guest' || !('data' in event) || event.data.bell_ms === undefined) continue;
      marks.resolve({ spawn_ms: Number(event.data.spawn_ms), bell_ms: Number(event.data.bell_ms) });
    }
  })().catch(error => marks.reject(error));
  const samples: number[] = [];
  for (let i = 0; i < WARM_UP + STARTS; i++) {
    marks = Promise.withResolvers();
    const total = await timed(() => w.client.vm.start({ vm: 'share' }));
    const { spawn_ms, bell_ms } = await marks.promise;
    samples.push(spawn_ms + total - bell_ms);
    await w.client.vm.stop({ vm: 'share', force: true });
  }
  marks.promise.catch(() => {});
  abort.abort();
  await watch;
  return {
    name: 'own share of vm.start',
    what: 'client sends the request to VMM spawned, plus bell of the guest to reply read; the VMM is a stand-in that rings at once',
    samples: samples.slice(WARM_UP),
    unit: 'ms',
    limit: 15,
  };
};

/** Of all threads, ms. /proc/<pid>/schedstat has nanoseconds, where /proc/<pid>/stat counts in hundredths of a second. */
const cpuOf = async (pid: number): Promise<number> => {
  let ns = 0;
  for (const tid of await readdir(`/proc/${pid}/task`))
    ns += Number((await readFile(`/proc/${pid}/task/${tid}/schedstat`, 'utf8')).split(' ')[0]);
  return ns / 1e6;
};

/** Of the children that have ended and were waited for, ms. proc(5), fields 16 and 17; in hundredths of a second. */
const childrenOf = async (pid: number): Promise<number> => {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[13]) + Number(fields[14])) * 10;
};

/** Processor time of a process that spawns another one and does nothing else: what it costs on this machine as busy as it is now. */
const bareSpawn = async (): Promise<number> => {
  const before = process.cpuUsage();
  await once(spawn('true', { detached: true, stdio: 'ignore' }), 'exit');
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
};

/** The stand-in rings at once. */
export const startCpu = async (vmm: VmmKind): Promise<Figure[]> => {
  await using w = await shipped(vmm);
  await w.client.vm.create({ name: 'cpu', memory_mib: 64 });
  const { pid } = w.daemon();
  const [own, children, spawns]: [number[], number[], number[]] = [[], [], []];
  for (let i = 0; i < WARM_UP + STARTS; i++) {
    const before = [await cpuOf(pid), await childrenOf(pid)] as const;
    await w.client.vm.start({ vm: 'cpu' });
    own.push((await cpuOf(pid)) - before[0]);
    children.push((await childrenOf(pid)) - before[1]);
    await w.client.vm.stop({ vm: 'cpu', force: true });
    spawns.push(await bareSpawn());
  }
  const name = `processor time of nexusd for a start on ${vmm}`;
  const what = 'user and system, from the request to the answer that the guest is ready';
  const late = (samples: number[]) => samples.slice(WARM_UP);
  const helpers = late(children).reduce((sum, ms) => sum + ms, 0) / STARTS;
  return [
    { name, what, samples: late(own), unit: 'ms', limit: 30 },
    {
      name: `its helpers, on ${vmm}`,
      what: 'programs that have ended by then, on average',
      samples: [helpers],
      unit: 'ms',
    },
    {
      name: 'a bare spawn',
      what: 'of `true`, by the bench, in turn with the starts',
      samples: late(spawns),
      unit: 'ms',
    },
  ];
};

/** The guests ring 500 ms after their VMM has come up. The first round warms up. */
export const manyAtOnce = async (vmm: VmmKind): Promise<Figure> => {
  await using w = await shipped(vmm);
  await w.behave({ BOOT_MS: 500 });
  const names = Array.from({ length: AT_ONCE }, (_, i) => `many-${i}`);
  for (const name of names) await w.client.vm.create({ name, memory_mib: 64 });
  const samples: number[] = [];
  for (let round = 0; round < 6; round++) {
    samples.push(await timed(() => Promise.all(names.map(vm => w.client.vm.start({ vm })))));
    await Promise.all(names.map(vm => w.client.vm.stop({ vm, force: true })));
  }
  return {
    name: `${AT_ONCE} VMs at once on ${vmm}`,
    what: 'first request to last answer that a guest is ready; the stand-in rings after 500 ms',
    samples: samples.slice(1),
    unit: 'ms',
    limit: 1500,
    holds_for: 'p99',
  };
};
