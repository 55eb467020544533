/** The work of a build: what its steps share, and how a step is run. */
import type { FileHandle } from 'node:fs/promises';
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { JobProgress } from '../api/job.ts';
import { type RunOptions, runAny } from '../lib/proc.ts';
import { formatBytes } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import type { Facts } from './facts.ts';
import type { Layout } from './layout.ts';
import { type Default, type Merge, mergedTar, type Overlay } from './merge.ts';
import type { Scan } from './scan.ts';
import type { ToolOptions, Tools } from './tools.ts';

const HOUR_MS = 3_600_000;

export interface BuildOptions {
  /** Path of a tar archive, not compressed. */
  archive: string;
  /** SHA-256 that the archive must have; another one is `unverified`. */
  archive_sha256?: string;
  /** The template's, in its order. */
  overlays?: readonly Overlay[];
  /** Called when the overlays are laid over the archive, with what both make of the system, and which paths the overlays speak of. */
  defaults?: (scan: Scan, facts: Facts, isTheirs: (path: string) => boolean) => readonly Default[];
  /** Path of the result; must not exist. */
  out: string;
  /** Length of the file system; default: content, a fifth, and what ext4 itself needs. */
  size_bytes?: number;
  /** Default: `tar` where mke2fs can and the archive has nothing that it would lose, else `tree`. */
  method?: 'tree';
  /** Asked once, before anything is written: throws where so much is not to be had. */
  needRoom?: (bytes: number) => Promise<void>;
  signal: AbortSignal;
  onProgress?: (progress: JobProgress) => void;
  onLog?: (line: string) => void;
  tools?: ToolOptions;
}

/** `tar`: mke2fs reads the archive itself. `tree`: through a private directory. */
export type Method = 'tar' | 'tree';

export interface Work {
  handle: FileHandle;
  scan: Scan;
  merge: Merge;
  layout: Layout;
  dir: string;
  raw: string;
  method: Method;
  tools: Tools;
  facts: Facts;
  /** Hash of archive, overlays and layout: the file system's UUID and its hash seed come from it. */
  identity: string;
  /** Environment with the clock of the archive. */
  env: NodeJS.ProcessEnv;
  options: BuildOptions;
}

/** Runs a step; its last words become the fault. */
export const step = async (work: Work, argv: string[], options: RunOptions): Promise<string> => {
  const { onLog, signal } = work.options;
  const onLine = (line: string) => line.trim() !== '' && onLog?.(plain(line));
  const result = await runAny(argv, { timeout_ms: HOUR_MS, env: work.env, signal, onLine, ...options });
  if (result.code === 0) return result.stdout;
  const words = plain(result.stderr.trim().split('\n').slice(-2).join(' / ')).slice(-300);
  if (/No space left on device|Disk quota exceeded/.test(result.stderr)) throw await noRoom(work);
  if (/Could not allocate|No free space|not enough space/i.test(result.stderr))
    throw new Fault(
      'invalid',
      `Cannot build the image: its content does not fit into ${formatBytes(work.layout.size_bytes)}.`,
      {
        hint: `--size-bytes ${work.layout.size_bytes * 2}`,
      },
    );
  throw new Fault(
    'host',
    `Cannot build the image: ${argv[0]} failed with ${result.signal ?? `exit code ${result.code}`}: ${words}.`,
  );
};

/** What a build takes while it runs: the file system, and by tree all files of it once more. */
export const bytesTaken = ({ merge, method }: Pick<Work, 'merge' | 'method'>): number =>
  merge.blocks * 4096 * (method === 'tree' ? 2 : 1);

export const noRoom = async (work: Work): Promise<Fault> => {
  const fs = await statfs(work.dir);
  const needed = bytesTaken(work) + 16 * 1024 * 1024;
  return new Fault(
    'no_room',
    `Cannot build the image: it needs about ${formatBytes(needed)}, ${dirname(work.options.out)} has ${formatBytes(fs.bavail * fs.bsize)} free.`,
  );
};

/** The merged archive, for the standard input of a step. */
export const merged = (work: Work, stage: string): AsyncIterable<Uint8Array> => {
  const { signal, onProgress } = work.options;
  return mergedTar(work.handle, work.scan, work.merge, {
    signal,
    onProgress: (done, total) => onProgress?.({ stage, done, total, unit: 'bytes' }),
  });
};
