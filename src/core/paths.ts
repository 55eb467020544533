/** Where things lie in a data directory. */
import { join } from 'node:path';
import type { AssetKind } from '../api/asset.ts';
import { Fault } from '../api/fault.ts';
import { ensureDir } from '../lib/files.ts';

export interface Paths {
  readonly data: string;
  readonly kernels: string;
  readonly rootfs: string;
  readonly firecrackers: string;
  readonly initrd: string;
  readonly images: string;
  readonly vms: string;
  readonly jobs: string;
  /** Half-made things; emptied at each start of the daemon. */
  readonly tmp: string;
}

/** The longest path of a socket is 107 bytes; `/vms/<id>/run/<socket>` takes 50 of them. */
const MAX_DATA_DIR = 56;

/** Makes the folders of a data directory, readable by its owner alone. */
export const makePaths = async (data: string): Promise<Paths> => {
  if (Buffer.byteLength(data) > MAX_DATA_DIR) {
    throw new Fault('invalid', `Cannot use '${data}' as data directory: it is longer than ${MAX_DATA_DIR} bytes.`, {
      hint: 'choose a shorter path with --data-dir; paths of sockets are limited to 107 bytes',
    });
  }
  const dir = (name: string) => join(data, name);
  const paths: Paths = {
    data,
    kernels: dir('kernels'),
    rootfs: dir('rootfs'),
    firecrackers: dir('firecrackers'),
    initrd: dir('initrd'),
    images: dir('images'),
    vms: dir('vms'),
    jobs: dir('jobs'),
    tmp: dir('tmp'),
  };
  await ensureDir(data, 0o700);
  for (const path of Object.values(paths)) await ensureDir(path, 0o700);
  return paths;
};

const FOLDERS = { kernel: 'kernels', rootfs: 'rootfs', firecracker: 'firecrackers' } as const;

/** The folder of one kernel, archive or Firecracker. */
export const assetDir = (paths: Paths, kind: AssetKind, id: string): string => join(paths[FOLDERS[kind]], id);
export const vmDir = (paths: Paths, id: string): string => join(paths.vms, id);
/** What the VM wrote on its console, and before it `.1`. */
export const consoleLog = (paths: Paths, id: string): string => join(vmDir(paths, id), 'console.log');
/** The VMM's own working directory: sockets, FIFO, its standard error. */
export const runDir = (paths: Paths, id: string): string => join(paths.vms, id, 'run');
