/** The initramfs files: one for each kernel and agent, made at the first start that needs it. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Kernel } from '../api/kernel.ts';
import { writeInitrd } from '../assets/initrd.ts';
import { raced } from '../lib/deadline.ts';
import { exists, removeTree } from '../lib/files.ts';
import type { Host } from './host.ts';
import { assetDir } from './paths.ts';

const suffix = (host: Host): string => `-${host.agent.sha256.slice(0, 16)}.cpio`;

/** The path of the initramfs of a kernel and this daemon's agent; made if it is not there, by one for all who wait. */
export const initrdFor = async (host: Host, kernel: Kernel, signal: AbortSignal): Promise<string> => {
  const out = join(host.paths.initrd, `${kernel.id}${suffix(host)}`);
  if (await exists(out)) return out;
  const modules =
    kernel.modules_sha256 === null ? null : join(assetDir(host.paths, 'kernel', kernel.id), 'modules.cpio');
  // not with the signal of one start: others may wait for the same file
  const making = host.initrds.run(out, () =>
    writeInitrd({ modules, agent: host.agent.path, out, signal: host.closing }),
  );
  await raced(making, signal);
  return out;
};

/** Removes what no kernel of `known` needs, and what another agent or a killed daemon left. Gives the paths. */
export const sweepInitrds = async (host: Host, known: ReadonlySet<string>): Promise<string[]> => {
  const gone: string[] = [];
  for (const name of await readdir(host.paths.initrd)) {
    const end = suffix(host);
    if (name.endsWith(end) && known.has(name.slice(0, -end.length))) continue;
    const path = join(host.paths.initrd, name);
    await removeTree(host.paths.data, path);
    gone.push(path);
  }
  return gone;
};

/** Removes the initramfs files of a kernel that is being removed. */
export const removeInitrds = async (host: Host, kernel_id: string): Promise<void> => {
  for (const name of await readdir(host.paths.initrd)) {
    if (name.startsWith(`${kernel_id}-`)) await removeTree(host.paths.data, join(host.paths.initrd, name));
  }
};
