/** The spawn of a VMM: what it may open is opened here and passed on, so its uid needs no right on the way to our files. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, fchmodSync, fchownSync, fstatSync, openSync, statSync } from 'node:fs';
import { Fault } from '../api/fault.ts';
import type { Accel } from '../api/vm.ts';
import { inCgroup } from '../lib/cgroup.ts';
import type { MachineSpec } from './machine.ts';
import type { RunDir } from './run_dir.ts';

/** Descriptors in the VMM's own table. */
export interface PassedFds {
  kernel: number;
  initrd: number;
  /** As `spec.disks`. */
  disks: number[];
  /** Undefined: the program is found by its name. */
  program?: number;
}

export interface Spawning {
  spec: MachineSpec;
  dir: RunDir;
  accel: Accel;
  env: NodeJS.ProcessEnv;
  /** The group that it enters before it runs. */
  cgroup: string | null;
  /** The VMM opens disks again by the names of their descriptors: a writable one must be its uid's own. */
  reopens_disks: boolean;
  /** Path of a program that lies where its user may not go: it is passed on open, and run by the name of its descriptor. */
  program?: string | undefined;
  /** Program and arguments, from the descriptors. */
  argv: (fds: PassedFds) => string[];
}

/** stdin, stdout and stderr come first in the child's table. */
const FIRST_FD = 3;
const { O_RDONLY, O_RDWR } = constants;

const openFor = (spec: MachineSpec, what: string, path: string, flags: number): number => {
  try {
    return openSync(path, flags);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Fault('host', `Cannot start VM ${spec.id}: its ${what} cannot be opened: ${why}.`, { cause: error });
  }
};

/** What is opened again by the name of its descriptor: the way to the file needs no right then, the file itself does. */
const checkReadable = (spec: MachineSpec, path: string, fd: number): void => {
  if (spec.uid === null) return;
  const { mode, uid } = fstatSync(fd);
  if ((mode & 0o004) !== 0 || (uid === spec.uid && (mode & 0o400) !== 0)) return;
  const hint = `chmod a+r ${path}`;
  throw new Fault('host', `Cannot start VM ${spec.id}: ${path} is not readable for its VMM's user.`, { hint });
};

/** Its group may read a disk that it may not write; what all may read, the disk of an image, stays as it is. */
const letRead = (spec: MachineSpec, path: string, fd: number): void => {
  if (spec.uid !== null && (fstatSync(fd).mode & 0o004) === 0) {
    fchownSync(fd, 0, spec.uid);
    fchmodSync(fd, 0o640);
    return;
  }
  checkReadable(spec, path, fd);
};

const openDisk = ({ spec, reopens_disks }: Spawning, disk: MachineSpec['disks'][number]): number => {
  const fd = openFor(spec, `disk ${disk.id}`, disk.path, disk.read_only ? O_RDONLY : O_RDWR);
  if (!reopens_disks || spec.uid === null) return fd;
  try {
    if (disk.read_only) letRead(spec, disk.path, fd);
    else fchownSync(fd, spec.uid, spec.uid);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
};

/** The group through which a user may open /dev/kvm. Never root's own. */
const kvmGroup = (spec: MachineSpec): string => {
  const device = statSync('/dev/kvm', { throwIfNoEntry: false });
  if (device === undefined) return '--clear-groups'; // the VMM itself says best what it misses
  const { gid, mode } = device;
  if ((mode & 0o006) === 0o006) return '--clear-groups';
  if (gid !== 0 && (mode & 0o060) === 0o060) return `--groups=${gid}`;
  throw new Fault('host', `Cannot start VM ${spec.id}: /dev/kvm is for root alone, and a VMM does not run as root.`, {
    hint: 'groupadd -f -r kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm',
  });
};

/** As another user: no groups but the one of /dev/kvm, and no way to get more rights. Node's own uid option keeps groups. */
const asUser = (spec: MachineSpec, accel: Accel): string[] => {
  const { uid } = spec;
  if (uid === null) return [];
  if (process.getuid?.() !== 0) {
    throw new Fault('host', `Cannot start VM ${spec.id} as uid ${uid}: only root can run a VMM as another user.`);
  }
  const groups = accel === 'kvm' ? kvmGroup(spec) : '--clear-groups';
  return ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, groups, '--no-new-privs', '--'];
};

/** Starts the process in a session of its own, with no pipe to us: it lives on when we are gone. */
export const spawnVmm = async (options: Spawning): Promise<{ child: ChildProcess; fds: PassedFds }> => {
  const { spec, dir, accel, env, cgroup } = options;
  const before = [...(cgroup === null ? [] : inCgroup(cgroup)), ...asUser(spec, accel)];
  const opened: number[] = [];
  const pass = (fd: number): number => {
    opened.push(fd);
    return opened.length - 1 + FIRST_FD - 2; // the first two are stdout and stderr
  };
  try {
    pass(dir.openConsole());
    pass(dir.openLog());
    const boot = (what: string, path: string): number => {
      const fd = openFor(spec, what, path, O_RDONLY);
      const passed = pass(fd);
      checkReadable(spec, path, fd);
      return passed;
    };
    const fds: PassedFds = {
      kernel: boot('kernel', spec.kernel),
      initrd: boot('initrd', spec.initrd),
      disks: spec.disks.map(disk => pass(openDisk(options, disk))),
      ...(options.program === undefined ? {} : { program: boot('program', options.program) }),
    };
    const [command = '', ...args] = [...before, ...options.argv(fds)];
    const child = spawn(command, args, { cwd: dir.path, env, detached: true, stdio: ['ignore', ...opened] });
    child.unref();
    if (child.pid === undefined) {
      const [error] = await once(child, 'error');
      throw new Fault('host', `Cannot start VM ${spec.id}: ${command} cannot be run: ${error.message}.`, {
        cause: error,
      });
    }
    return { child, fds };
  } finally {
    for (const fd of opened) closeSync(fd);
  }
};
