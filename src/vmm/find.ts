/** VMM processes on this host, found without any record of them. */
import { readdir, readFile, readlink, realpath } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import type { VmmKind } from '../api/vm.ts';
import { procRef } from '../lib/proc.ts';
import type { Found } from './machine.ts';

const lookAt = async (
  pid: number,
  root: string,
  kind: VmmKind,
  vmIdOf: (argv: string[]) => string | undefined,
): Promise<Found | undefined> => {
  try {
    // The kernel appends this to a working directory that was removed: such a VMM is found all the same.
    const cwd = (await readlink(`/proc/${pid}/cwd`)).replace(/ \(deleted\)$/, '');
    const inside = relative(root, cwd);
    if (inside === '' || inside === '..' || inside.startsWith(`..${sep}`)) return undefined;
    const proc = await procRef(pid);
    const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
    const vm_id = vmIdOf(argv);
    return vm_id === undefined || proc === undefined ? undefined : { kind, vm_id, proc, dir: inside };
  } catch {
    return undefined; // it ended meanwhile, or is another user's
  }
};

/** Processes whose working directory lies in `run_root` and whose arguments name a VM. Dead ones (zombies) have neither. */
export const findVmms = async (
  run_root: string,
  kind: VmmKind,
  vmIdOf: (argv: string[]) => string | undefined,
): Promise<Found[]> => {
  const root = await realpath(run_root).catch(() => undefined);
  if (root === undefined) return [];
  const found: Found[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const one = await lookAt(Number(name), root, kind, vmIdOf);
    if (one !== undefined) found.push({ ...one, dir: join(run_root, one.dir) });
  }
  return found;
};
