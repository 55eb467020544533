/**
 * The benches. `node bench/run.ts [word…]` needs the bundle (`./nexus build`) and exits with 1 if a limit is broken; with words only those
 * are run whose name has one of them, without a word all but those that take gigabytes of disk. Timed figures belong here and not into
 * the tests: a busy machine makes them wrong.
 */
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { sleep } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { world } from '../test/kit/world.ts';
import { assets } from './assets.ts';
import { crashNoticed } from './crash.ts';
import { files } from './files.ts';
import { images } from './images.ts';
import { insideVm } from './inside.ts';
import { BUNDLE, type Figure, machine, memory, report, shipped, VMMS } from './kit.ts';
import { cliList, thousandVms, vmGet } from './list.ts';
import { manyAtOnce, startCpu, startShare } from './start.ts';
import { wsCreate } from './ws.ts';

const idleMemory = async (): Promise<Figure> => {
  await using w = await world({ main: BUNDLE });
  const samples: number[] = [];
  for (let i = 0; i < 5; i++) {
    await sleep(1000);
    const status = await readFile(`/proc/${w.daemon().pid}/status`, 'utf8');
    samples.push(memory(status, 'VmRSS'));
  }
  return {
    name: 'nexusd idle, resident',
    what: 'VmRSS of the bundle after one ping, once a second',
    samples,
    unit: 'MiB',
    limit: 130,
  };
};

/** On one daemon. */
const small = async (): Promise<Figure[]> => {
  await using w = await shipped('qemu');
  return [await startShare(w), await vmGet(w), await cliList(w)];
};

const benches: Record<string, () => Promise<Figure | Figure[]>> = {
  idle: idleMemory,
  small,
  list: thousandVms,
  'ws-btrfs': () => wsCreate('btrfs'),
  'ws-xfs': () => wsCreate('xfs'),
  'ws-ext4': () => wsCreate('ext4'),
  files,
  inside: insideVm,
  ...Object.fromEntries(
    VMMS.flatMap(vmm => [
      [`cpu-${vmm}`, () => startCpu(vmm)],
      [`many-${vmm}`, () => manyAtOnce(vmm)],
      [`crash-spawned-${vmm}`, () => crashNoticed(vmm, false)],
      [`crash-adopted-${vmm}`, () => crashNoticed(vmm, true)],
    ]),
  ),
};

/** Minutes of work on gigabytes: only where they are named. */
const large: typeof benches = { assets, images };
const all = { ...benches, ...large };

if (!(await exists(BUNDLE))) {
  console.error('error: dist/main.mjs is missing\nhint: ./nexus build');
  process.exit(1);
}
const words = process.argv.slice(2);
const named = Object.entries(all).filter(([name]) => words.some(w => name.includes(w)));
const wanted = words.length === 0 ? Object.entries(benches) : named;
if (wanted.length === 0) {
  console.error(`error: no bench has such a name\nhint: ${Object.keys(all).join(', ')}`);
  process.exit(1);
}
console.log(`machine: ${machine()}`);
for (const [, bench] of wanted) if (![await bench()].flat().map(report).every(Boolean)) process.exitCode = 1;
