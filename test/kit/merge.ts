/** Archives as files of a test's own, read and merged by what the builder uses. */
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { type Default, type Merge, mergedTar, type Overlay, planMerge } from '../../src/images/merge.ts';
import { type Scan, scanArchive } from '../../src/images/scan.ts';

export interface Merged {
  /** The merged archive. */
  tar: Buffer;
  scan: Scan;
  plan: Merge;
}

export interface TarPlace {
  dir: string;
  /** Gives the path of a new file. */
  write(bytes: Buffer): Promise<string>;
  scan(bytes: Buffer): Promise<Scan>;
  /** `defaults` sees what the overlays made of the archive. */
  merge(bytes: Buffer, overlays: readonly Overlay[], defaults?: (scan: Scan) => Default[]): Promise<Merged>;
}

/** A folder for archives, removed after the tests of the file. */
export const tarPlace = async (): Promise<TarPlace> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-tar-'));
  after(() => rm(dir, { recursive: true, force: true }));
  const { signal } = new AbortController();
  let count = 0;
  const write = async (bytes: Buffer) => {
    const path = join(dir, `${count++}.tar`);
    await writeFile(path, bytes);
    return path;
  };
  return {
    dir,
    write,
    scan: async bytes => {
      await using handle = await open(await write(bytes), 'r');
      return await scanArchive(handle, { signal });
    },
    merge: async (bytes, overlays, defaults = () => []) => {
      await using handle = await open(await write(bytes), 'r');
      const scan = await scanArchive(handle, { signal });
      const plan = planMerge(scan, overlays, () => defaults(scan));
      const parts: Buffer[] = [];
      for await (const part of mergedTar(handle, scan, plan, { signal })) parts.push(Buffer.from(part));
      return { tar: Buffer.concat(parts), scan, plan };
    },
  };
};
