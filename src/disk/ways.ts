/** How a disk comes from another: three file systems' ways of doing it. */
import { constants } from 'node:fs';
import { copyFile, mkdir, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { RunError, run } from '../lib/proc.ts';

export interface Way {
  readonly backend: 'btrfs' | 'reflink' | 'copy';
  readonly why: string;
  /** Makes a new folder for a disk. */
  folder(dir: string, signal: AbortSignal): Promise<void>;
  /** Copies a file by sharing its blocks; false where the two files cannot. Never copies bytes. */
  reflink(source: string, target: string): Promise<boolean>;
  /** Copies a file's bytes, holes kept. */
  copy(source: string, target: string, signal: AbortSignal): Promise<void>;
  /** Makes the folder `dir` with a clone of the file `image`, which lies in a folder of its own. */
  clone(image: string, dir: string, signal: AbortSignal): Promise<void>;
}

const HOUR_MS = 3_600_000;

const noRoomOr = (error: unknown): unknown => {
  if (!(error instanceof RunError) || !/No space left|quota exceeded/i.test(error.message)) return error;
  return Object.assign(new Error(error.message), { code: 'ENOSPC' });
};

/** The daemon's own environment as it is then: it marks what is started, so that a later daemon ends what an earlier one left. */
const programs = () => ({
  ...process.env,
  PATH: `${process.env.PATH ?? '/usr/bin:/bin'}:/usr/sbin:/sbin`,
  LC_ALL: 'C',
});

/** Runs a program that writes; a full disk is ENOSPC. */
export const tool = async (argv: string[], signal: AbortSignal, timeout_ms = 60_000): Promise<void> => {
  await run(argv, { signal, timeout_ms, env: programs() }).catch((error: unknown) => {
    throw noRoomOr(error);
  });
};

/** Forced: without FORCE a file system that cannot share blocks gets a full copy whose holes are data. */
export const reflink = async (source: string, target: string): Promise<boolean> => {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL);
    return true;
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (['ENOTSUP', 'EOPNOTSUPP', 'EXDEV', 'EINVAL', 'ENOTTY', 'ENOSYS'].includes(String(code))) {
      await rm(target, { force: true });
      return false;
    }
    throw error;
  }
};

/** Node's own copy turns holes into data. `cp` asks the file system where they are, and looks for zeros besides. */
const copy = (source: string, target: string, signal: AbortSignal): Promise<void> =>
  tool(['cp', '--sparse=always', '--reflink=never', '--no-preserve=all', '--', source, target], signal, HOUR_MS);

const plainFolder = async (dir: string): Promise<void> => {
  await mkdir(dir);
};

export const copyWay = (why: string): Way => ({
  backend: 'copy',
  why,
  folder: plainFolder,
  reflink: async () => false,
  copy,
  clone: async (image, dir, signal) => {
    await mkdir(dir);
    await copy(image, join(dir, 'disk.raw'), signal);
  },
});

/** Into a folder that is there. */
const share = async (image: string, dir: string): Promise<void> => {
  if (!(await reflink(image, join(dir, 'disk.raw'))))
    throw new Fault('host', `Cannot clone ${image}: the file system shares blocks no more.`);
};

export const reflinkWay = (why: string): Way => ({
  ...copyWay(why),
  backend: 'reflink',
  reflink,
  clone: async (image, dir) => {
    await mkdir(dir);
    await share(image, dir);
  },
});

/** The root of a subvolume has this inode number (BTRFS_FIRST_FREE_OBJECTID of Linux' btrfs_tree.h). */
const SUBVOLUME_INO = 256;

const newSubvolume = (dir: string, signal: AbortSignal) => tool(['btrfs', '-q', 'subvolume', 'create', dir], signal);

/** Folders are subvolumes. They are removed like folders: since Linux 4.18 an owner may remove an empty one. */
export const btrfsWay = (why: string): Way => ({
  ...reflinkWay(why),
  backend: 'btrfs',
  folder: newSubvolume,
  clone: async (image, dir, signal) => {
    const from = dirname(image);
    if ((await stat(from)).ino === SUBVOLUME_INO) {
      await tool(['btrfs', '-q', 'subvolume', 'snapshot', from, dir], signal);
      return;
    }
    // a data directory that was copied here from elsewhere has plain folders
    await newSubvolume(dir, signal);
    await share(image, dir);
  },
});
