/** The leak audit: what a test may not leave behind. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exists } from '../../src/lib/files.ts';
import { processesIn, type World } from './world.ts';

export interface Traces {
  processes: number[];
  sockets: string[];
  mounts: string[];
  files: string[];
}

/** Files that a daemon with no VM, no job and no half-made thing has. */
const BELONGS =
  /^(nexusd\.(log|sock)|daemon\.lock(-.*)?|state\.db(-.*)?|(kernels|rootfs|images|initrd|jobs)(\/.*)?|vms|workspaces|tmp)$/;

/** What is there that no record accounts for: processes, sockets, mounts and files under the data directory. */
/** The daemon's own door, under the name it was bound by before it was renamed, and connections to it. */
const DOOR = /\/(\.s[^/]+\/s|nexusd\.sock)$/;

export const traces = async (w: World): Promise<Traces> => {
  const unix = await readFile('/proc/net/unix', 'utf8');
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  const files: string[] = [];
  const alive = (await exists(w.socket)) ? await readdir(w.data_dir, { recursive: true }) : [];
  for (const path of alive) if (!BELONGS.test(path)) files.push(path);
  return {
    processes: await processesIn(w.data_dir, w.daemon().pid),
    sockets: unix.split('\n').filter(line => line.includes(`${w.data_dir}/`) && !DOOR.test(line)),
    mounts: mounts.split('\n').filter(line => line.includes(w.data_dir)),
    files: files.sort(),
  };
};

export const NO_TRACES: Traces = { processes: [], sockets: [], mounts: [], files: [] };

/** Open descriptors of the daemon. */
export const descriptors = async (w: World): Promise<number> =>
  (await readdir(join('/proc', String(w.daemon().pid), 'fd'))).length;
