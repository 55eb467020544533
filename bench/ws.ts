/**
 * How long it takes to get a writable copy of an image: `ws.create` through the API, on file systems in loop files, with an image of 64 MiB
 * and one of 1 GiB of data. The loop files lie in memory (NEXUS_BENCH_DIR: elsewhere): it is not the disk below that is measured. Beside it
 * stands what the bare program takes in turn, by which a busy machine is known. On ext4 against `cp --sparse=always` of the same image on the same file system, in turn; both to the disk
 * (`fsync`), for that is what a workspace is promised to be.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { run } from '../src/lib/proc.ts';
import { type FsKind, loopFs } from '../test/kit/loop-fs.ts';
import { type World, world } from '../test/kit/world.ts';
import { BUNDLE, type Figure, timed } from './kit.ts';

const MIB = 1024 ** 2;
const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C' };
/** Data in the image, MiB. */
const SIZES = [64, 1024] as const;
const MEMORY = '/dev/shm';
const TIMES = 100;
const COPIES = 9;

/** An ext4 file system with so much in it, as an image of that daemon. */
const addImage = async (w: World, dir: string, mib: number): Promise<string> => {
  const [root, raw] = [join(dir, 'root'), join(dir, 'raw')];
  await mkdir(root);
  await using file = await open(join(root, 'data'), 'w');
  const noise = randomBytes(16 * MIB);
  for (let at = 0; at < mib; at += 16) await file.write(noise);
  await run(['mke2fs', '-q', '-t', 'ext4', '-d', root, raw, `${mib + Math.max(64, mib / 4)}M`], {
    env,
    timeout_ms: 600_000,
  });
  const job = await w.client.image.import({ name: `m${mib}`, from: raw });
  const end = await w.client.job.wait({ job: job.id, timeout_ms: 600_000 });
  if (end.state !== 'succeeded') throw new Error(`${end.kind}: ${end.error?.detail}`);
  for (const path of [root, raw]) await rm(path, { recursive: true });
  return `m${mib}`;
};

/** What makes a clone by itself, as a process: no daemon, no record, nothing synced. */
const program = async (w: World, kind: FsKind, dir: string, image: string): Promise<number> => {
  const { id } = await w.client.image.inspect({ image });
  const [from, to] = [join(w.data_dir, 'images', id), join(dir, 'bare')];
  const argv =
    kind === 'btrfs'
      ? ['btrfs', '-q', 'subvolume', 'snapshot', from, to]
      : ['cp', '--reflink=always', join(from, 'disk.raw'), to];
  const ms = await timed(() => run(argv, { env }));
  await rm(to, { recursive: true });
  return ms;
};

const create = async (w: World, image: string, times: number): Promise<number[]> => {
  const samples: number[] = [];
  for (let n = 0; n < times; n++) {
    samples.push(await timed(() => w.client.ws.create({ name: 'bench', image })));
    await w.client.ws.remove({ ws: 'bench' });
  }
  return samples;
};

/** Ours over theirs, and theirs without the way to the disk, for comparison. */
const againstCp = async (w: World, dir: string, image: string): Promise<{ ratios: number[]; bare: number[] }> => {
  const { id } = await w.client.image.inspect({ image });
  const [from, to] = [join(w.data_dir, 'images', id, 'disk.raw'), join(dir, 'copy.raw')];
  const cp = () => run(['cp', '--sparse=always', from, to], { timeout_ms: 600_000 });
  const found = { ratios: [] as number[], bare: [] as number[] };
  for (let n = 0; n <= COPIES; n++) {
    let alone = 0;
    const theirs = await timed(async () => {
      alone = await timed(cp);
      await run(['sync', to], { timeout_ms: 600_000 });
    });
    await rm(to);
    const [ours = 0] = (await create(w, image, 1)).slice(-1);
    if (n === 0) continue; // it warms up
    found.ratios.push(ours / theirs);
    found.bare.push(alone);
  }
  return found;
};

export const wsCreate = async (kind: FsKind): Promise<Figure[]> => {
  const fs = await loopFs(kind, 8192, process.env.NEXUS_BENCH_DIR ?? MEMORY);
  if (typeof fs === 'string') {
    console.log(`skip ws-${kind}: ${fs}`);
    return [];
  }
  await using mounted = fs;
  await using w = await world({ main: BUNDLE, parent: mounted.dir, env: { NEXUS_CHECK_OUTPUT: '0' } });
  const { backend } = (await w.client.daemon.get()).disk;
  const figures: Figure[] = [];
  for (const mib of SIZES) {
    const image = await addImage(w, mounted.dir, mib);
    const what = `an image with ${mib} MiB of data, ${kind} in a loop file`;
    if (backend !== 'copy') {
      const samples: number[] = [];
      const theirs: number[] = [];
      for (let n = 0; n < TIMES; n++) {
        samples.push(...(await create(w, image, 1)));
        theirs.push(await program(w, kind, mounted.dir, image));
      }
      figures.push({ name: 'the bare program', what: `in turn with the next; ${what}`, samples: theirs, unit: 'ms' });
      figures.push({
        name: `ws.create, ${backend}`,
        what: `client call to answer; ${what}`,
        samples,
        unit: 'ms',
        limit: 10,
      });
      continue;
    }
    const { ratios, bare } = await againstCp(w, mounted.dir, image);
    figures.push(
      {
        name: 'ws.create, copy',
        what: `as a multiple of \`cp --sparse=always\` and \`sync\` of the copy; ${what}`,
        ...{ samples: ratios, unit: 'x', limit: 1.2 },
      },
      { name: '`cp` alone', what: `the copy may be in memory only; ${what}`, samples: bare, unit: 'ms' },
    );
  }
  return figures;
};
