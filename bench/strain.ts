/** What a VM that is asked for much costs the daemon and the agent in it: 500 commands at once, and 1 GiB of output to a client that reads slowly. */
import { readFile } from 'node:fs/promises';
import { execResult } from '../src/client/exec.ts';
import { sleep } from '../src/lib/deadline.ts';
import type { World } from '../test/kit/world.ts';
import { type Figure, memory, peak, timed } from './kit.ts';

const MIB = 1024 * 1024;
const AT_ONCE = 500;
const SLOW_MIB = 1024;
/** A slow client reads this much, and then nothing for a while. */
const GULP = 64 * MIB;
const BREATH_MS = 1000;

/** The daemon's peak while `work` is done, above what it has before, MiB. */
const grown = async (w: World, work: () => Promise<unknown>): Promise<number> => {
  const before = memory(await readFile(`/proc/${w.daemon().pid}/status`, 'utf8'), 'VmRSS');
  return (await peak(w, work)) - before;
};

/** Of the agent, which is PID 1, MiB. */
export const agentMemory = async (w: World, vm: string): Promise<{ now: number; peak: number }> => {
  const { stdout } = await execResult(w.client.exec.run({ vm, argv: ['cat', '/proc/1/status'] }));
  const status = stdout.toString();
  return { now: memory(status, 'VmRSS'), peak: memory(status, 'VmHWM') };
};

const atOnce = async (w: World, vm: string): Promise<Figure[]> => {
  let ms = 0;
  const more = await grown(w, async () => {
    const one = async (i: number) => {
      const { stdout } = await execResult(w.client.exec.run({ vm, argv: ['sh', '-c', `sleep 0.2; echo ${i}`] }));
      if (stdout.toString() !== `${i}\n`) throw new Error(`command ${i} wrote ${stdout}`);
    };
    ms = await timed(() => Promise.all(Array.from({ length: AT_ONCE }, (_, i) => one(i))));
  });
  const name = `${AT_ONCE} at once`;
  return [
    { name, what: 'commands that sleep 0.2 s, from the first call to the last result', samples: [ms], unit: 'ms' },
    { name: `${name}, daemon`, what: 'its peak memory meanwhile, above that before', samples: [more], unit: 'MiB' },
  ];
};

const slowly = async (w: World, vm: string): Promise<Figure> => {
  const more = await grown(w, async () => {
    let [read, gulp] = [0, 0];
    for await (const message of w.client.exec.run({ vm, argv: ['head', '-c', String(SLOW_MIB * MIB), '/dev/zero'] })) {
      if (message.type === 'gap') throw new Error(`${message.bytes} bytes were lost`);
      if (message.type !== 'stdout') continue;
      const bytes = Buffer.byteLength(message.data, 'base64');
      read += bytes;
      gulp += bytes;
      if (gulp < GULP) continue;
      gulp = 0;
      await sleep(BREATH_MS);
    }
    if (read !== SLOW_MIB * MIB) throw new Error(`${read} bytes came`);
  });
  const what = `its peak memory above that before, while a client reads ${SLOW_MIB} MiB, ${GULP / MIB} at a time with ${BREATH_MS} ms in between`;
  return { name: 'slow client, daemon', what, samples: [more], unit: 'MiB', limit: 64 };
};

export const strain = async (w: World, vm: string): Promise<Figure[]> => [
  ...(await atOnce(w, vm)),
  await slowly(w, vm),
];
