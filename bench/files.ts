/** Files of a really booted VM: bytes a second against a command that writes them, and memory that does not follow their length. */
import { Readable } from 'node:stream';
import { type World, world } from '../test/kit/world.ts';
import { BUNDLE, type Figure, peak, timed } from './kit.ts';

const MIB = 1024 * 1024;
const vm = 'box';

const inAndOut = async (w: World, mib: number): Promise<{ up_ms: number; down_ms: number }> => {
  const path = '/root/big';
  const part = Buffer.alloc(MIB, 'x');
  const up_ms = await timed(() => w.client.fs.write({ vm, path }, { body: Readable.from(Array(mib).fill(part)) }));
  const down_ms = await timed(async () => {
    for await (const _ of await w.client.fs.read({ vm, path }));
  });
  return { up_ms, down_ms };
};

/** With words as `files`; 256 MiB and 1 GiB, or as many MiB as NEXUS_BENCH_MIB says and a quarter of them. */
export const files = async (): Promise<Figure[]> => {
  const large = Number(process.env.NEXUS_BENCH_MIB ?? 1024);
  await using w = await world({ main: BUNDLE, seed: 'booted', qemu: 'real', env: { NEXUS_CHECK_OUTPUT: '0' } });
  await w.client.vm.create({ name: vm, memory_mib: 512 });
  await w.client.vm.start({ vm });
  await inAndOut(w, 16); // warm
  let last = { up_ms: 0, down_ms: 0 };
  const run = (mib: number) => async () => {
    last = await inAndOut(w, mib);
  };
  const small_peak = await peak(w, run(large / 4));
  const large_peak = await peak(w, run(large));
  const cat_ms = await timed(async () => {
    for await (const _ of w.client.exec.run({ vm, argv: ['cat', '/root/big'] }));
  });
  await w.client.vm.delete({ vm });
  const grown = `the daemon's peak memory while ${large} MiB go in and out, above that for ${large / 4} MiB`;
  return [
    { name: 'files, memory', what: grown, samples: [large_peak - small_peak], unit: 'MiB', limit: 8 },
    {
      name: 'files, out',
      what: `reading ${large} MiB, against exec of cat`,
      samples: [last.down_ms / cat_ms],
      unit: 'x',
      limit: 1.1,
    },
    {
      name: 'files, in',
      what: `writing ${large} MiB, against reading them`,
      samples: [last.up_ms / last.down_ms],
      unit: 'x',
    },
  ];
};
