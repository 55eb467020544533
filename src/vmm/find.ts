/** VMM processes on this host, found without any record of them. */
import { readdir, readFile, readlink, realpath } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import type { VmmKind } from '../api/vm.ts';
import { type ProcRef, procRef } from '../lib/proc.ts';
import type { Found } from './machine.ts';

const after = (argv: readonly string[], name: string): string => {
  const at = argv.indexOf(name);
  return at === -1 ? '' : (argv[at + 1] ?? '');
};

/** The ID that Firecracker is given: it takes no underscore. */
export const instanceId = (vm_id: string): string => vm_id.replaceAll('_', '-');

/** The VM in the arguments of a VMM; also in those of the program that is about to become one. */
export const vmOf = (argv: readonly string[]): { kind: VmmKind; vm_id: string } | undefined => {
  const name = after(argv, '-name');
  if (argv.includes('-qmp') && /^vm_[0-9a-z]+$/.test(name)) return { kind: 'qemu', vm_id: name };
  const id = after(argv, '--id');
  if (argv.includes('--api-sock') && /^vm-[0-9a-z]+$/.test(id)) {
    return { kind: 'firecracker', vm_id: id.replace('-', '_') };
  }
  return undefined;
};

/** A process that works below a directory. */
export interface Inside {
  proc: ProcRef;
  argv: string[];
  /** From that directory. */
  dir: string;
}

const lookAt = async (pid: number, root: string): Promise<Inside | undefined> => {
  try {
    // The kernel appends this to a working directory that was removed: such a VMM is found all the same.
    const cwd = (await readlink(`/proc/${pid}/cwd`)).replace(/ \(deleted\)$/, '');
    const inside = relative(root, cwd);
    if (inside === '' || inside === '..' || inside.startsWith(`..${sep}`)) return undefined;
    const proc = await procRef(pid);
    const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
    return proc && { proc, argv, dir: inside };
  } catch {
    return undefined; // it ended meanwhile, or is another user's
  }
};

/** Processes whose working directory lies in `run_root`. Dead ones (zombies) have none. */
export const processesBelow = async (run_root: string): Promise<Inside[]> => {
  const root = await realpath(run_root).catch(() => undefined);
  if (root === undefined) return [];
  const found: Inside[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const one = await lookAt(Number(name), root);
    if (one !== undefined) found.push(one);
  }
  return found;
};

/** Those whose arguments name a VM. */
export const findVmms = async (run_root: string): Promise<Found[]> =>
  (await processesBelow(run_root)).flatMap(({ proc, argv, dir }) => {
    const vm = vmOf(argv);
    return vm === undefined ? [] : [{ ...vm, proc, dir: join(run_root, dir) }];
  });
