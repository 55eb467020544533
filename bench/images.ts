/**
 * Images (needs 4 GiB in NEXUS_BENCH_DIR, default /var/tmp). A build of an archive of 300 MB and 15,000 files
 * against `mke2fs -d -` that reads the same archive, in turn; and the peak memory of builds of 300 MB and 1.2 GB.
 */
import { randomBytes } from 'node:crypto';
import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { run } from '../src/lib/proc.ts';
import { env, newMke2fs } from '../test/kit/build.ts';
import { headerOf } from '../test/kit/tar.ts';
import { type Figure, quantile, roomy, timed } from './kit.ts';

const ROUNDS = Number(process.env.NEXUS_BENCH_ROUNDS ?? 7);
const FILES = 15_000;

/** An archive of 15,000 files that do not compress; sizes as in a system: most are small. */
const make = async (base: string, mb: number): Promise<string> => {
  const path = join(base, `${mb}.tar`);
  await using file = await open(path, 'w');
  const noise = randomBytes(16 * 1024 * 1024);
  const mean = (mb * 1e6) / FILES;
  const dirs = ['usr', 'usr/share', ...Array.from({ length: 300 }, (_, n) => `usr/share/part-${n}`)];
  // mke2fs does not make the folders that an archive leaves out
  await file.write(Buffer.concat(dirs.map(dir => headerOf({ name: `${dir}/`, type: '5', mode: 0o755 }, 0))));
  for (let n = 0; n < FILES; n++) {
    // nine of ten have a fifth of the mean, the tenth the rest
    const size = Math.floor(n % 10 === 0 ? mean * 8.2 : mean * 0.2);
    const at = (n * 4099) % (noise.length - size);
    const name = `usr/share/part-${n % 300}/file-${n}`;
    const padding = Buffer.alloc((512 - (size % 512)) % 512);
    await file.write(Buffer.concat([headerOf({ name }, size), noise.subarray(at, at + size), padding]));
  }
  await file.write(Buffer.alloc(1024));
  return path;
};

const ours = async (mke2fs: string, base: string, archive: string): Promise<{ ms: number; rss_mib: number }> => {
  const out = join(base, 'ours.raw');
  const argv = [process.execPath, '--no-warnings', join(import.meta.dirname, 'build.ts'), archive, out, mke2fs];
  const { stdout } = await run(argv, { timeout_ms: 1_800_000 });
  await rm(out);
  return JSON.parse(stdout);
};

const SHELL = '"$1" -q -F -t ext4 -N 65536 -d - "$3" "$4" <"$2"';

const theirs = async (mke2fs: string, base: string, archive: string): Promise<number> => {
  const out = join(base, 'theirs.raw');
  const argv = ['sh', '-c', SHELL, 'sh', mke2fs, archive, out, '512M'];
  const ms = await timed(() => run(argv, { env, timeout_ms: 1_800_000 }));
  await rm(out);
  return ms;
};

/** With the word `images`. */
export const images = async (): Promise<Figure[]> => {
  const mke2fs = await newMke2fs();
  if (mke2fs === undefined) throw new Error('no mke2fs of 1.47.2 or newer can be had');
  await using room = await roomy();
  const { dir } = room;
  const small = await make(dir, 300);
  const ratios: number[] = [];
  const peaks: number[] = [];
  for (let i = 0; i <= ROUNDS; i++) {
    const bare = await theirs(mke2fs, dir, small);
    const { ms, rss_mib } = await ours(mke2fs, dir, small);
    console.log(`     mke2fs ${bare.toFixed(0)} ms, ours ${ms.toFixed(0)} ms, ${rss_mib.toFixed(1)} MiB`);
    if (i === 0) continue; // it warms up
    ratios.push(ms / bare);
    peaks.push(rss_mib);
  }
  await rm(small);
  const large = await make(dir, 1200);
  const more: number[] = [];
  for (let i = 0; i < 3; i++) more.push((await ours(mke2fs, dir, large)).rss_mib);
  return [
    {
      name: 'build, ours against mke2fs -d -',
      what: 'archive to checked, hashed, synced image (ours) against archive to file (mke2fs), 300 MB in 15,000 files, in turn',
      ...{ samples: ratios, unit: 'x', limit: 2.5 },
    },
    {
      name: 'peak memory, 1.2 GB against 300 MB',
      what: 'difference of the medians of VmHWM of the process that builds, 15,000 files each',
      ...{ samples: [quantile(more, 0.5) - quantile(peaks, 0.5)], unit: 'MiB', limit: 16 },
    },
  ];
};
