/**
 * The benches. `node bench/run.ts` needs the bundle (`./nexus build`) and exits with 1 if a limit is broken.
 * Timed figures belong here and not into the tests: a busy machine makes them wrong.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { sleep } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { run } from '../src/lib/proc.ts';
import { REPO, type World, world } from '../test/kit/world.ts';
import { type Figure, machine, report } from './kit.ts';

const BUNDLE = join(REPO, 'dist/main.mjs');

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const from = performance.now();
  await work();
  return performance.now() - from;
};

/** Request to spawn, plus bell to reply: what a start costs beside the VMM and the guest. */
const startShare = async (w: World): Promise<Figure> => {
  await w.client.vm.create({ name: 'bench', memory_mib: 64 });
  const samples: number[] = [];
  for (let i = 0; i < 25; i++) {
    const abort = new AbortController();
    const marks = Promise.withResolvers<{ spawn_ms: number; bell_ms: number }>();
    const watch = (async () => {
      for await (const event of w.client.event.watch({}, { signal: abort.signal })) {
        if (event.type !== 'vm.guest' || !('data' in event) || event.data.bell_ms === undefined) continue;
        marks.resolve({ spawn_ms: Number(event.data.spawn_ms), bell_ms: Number(event.data.bell_ms) });
      }
    })().catch(() => {});
    const total = await timed(() => w.client.vm.start({ vm: 'bench' }));
    const { spawn_ms, bell_ms } = await marks.promise;
    abort.abort();
    await watch;
    samples.push(spawn_ms + total - bell_ms);
    await w.client.vm.stop({ vm: 'bench', force: true });
  }
  return {
    name: 'own share of vm.start',
    what: 'client sends the request to VMM spawned, plus bell of the guest to reply read; the VMM is a stand-in that rings at once',
    samples: samples.slice(5),
    unit: 'ms',
    limit: 15,
  };
};

const vmGet = async (w: World): Promise<Figure> => {
  const samples: number[] = [];
  for (let i = 0; i < 2200; i++) samples.push(await timed(() => w.client.vm.get({ vm: 'bench' })));
  return {
    name: 'vm.get',
    what: 'client call to answer, one after the other over one kept connection',
    samples: samples.slice(200),
    unit: 'ms',
    limit: 1,
  };
};

const cliList = async (w: World): Promise<Figure> => {
  const env = { ...process.env, NEXUS_SOCKET: w.socket };
  const bare = [process.execPath, '-e', '0'];
  const list = [process.execPath, BUNDLE, 'nexusctl', 'vm', 'list'];
  const samples: number[] = [];
  for (let i = 0; i < 23; i++) {
    const base = await timed(() => run(bare));
    samples.push((await timed(() => run(list, { env }))) / base);
  }
  return {
    name: 'nexusctl vm list from the bundle',
    what: 'whole process, as a multiple of `node -e 0` in turn',
    samples: samples.slice(3),
    unit: 'x',
    limit: 3,
  };
};

const idleMemory = async (): Promise<Figure> => {
  await using w = await world({ main: BUNDLE });
  const samples: number[] = [];
  for (let i = 0; i < 5; i++) {
    await sleep(1000);
    const status = await readFile(`/proc/${w.daemon().pid}/status`, 'utf8');
    samples.push(Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024);
  }
  return {
    name: 'nexusd idle, resident',
    what: 'VmRSS of the bundle after one ping, once a second',
    samples,
    unit: 'MiB',
    limit: 130,
  };
};

if (!(await exists(BUNDLE))) {
  console.error('error: dist/main.mjs is missing\nhint: ./nexus build');
  process.exit(1);
}
console.log(`machine: ${machine()}`);
const figures: Figure[] = [await idleMemory()];
{
  await using w = await world({ main: BUNDLE, seed: 'booted' });
  figures.push(await startShare(w), await vmGet(w), await cliList(w));
}
process.exitCode = figures.map(report).every(Boolean) ? 0 : 1;
