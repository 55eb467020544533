/**
 * Groups of processes that the kernel accounts for: version 2 of cgroups alone. cgroups(7), and admin-guide/cgroup-v2 of the kernel.
 *
 * INVARIANTS: all of ours lie below one directory, which is named after its owner, so that two owners never meet. No name is used twice:
 * what is done to the group of a process that has ended touches no later one. They are a means of measuring: what cannot be made, entered
 * or removed keeps nobody from anything. Directories above ours are never changed.
 */
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import process from 'node:process';
import { sleep } from './deadline.ts';
import { runAny } from './proc.ts';

const CONTROLLERS = ['cpu', 'memory'];
const TRY_MS = 5000;
/** A process that was killed may be in its group for a while, with all its memory to give back. */
const EMPTY_MS = 20_000;
const PATIENCE_MS = 200;

export interface Cgroups {
  /** Where groups are made; null: nowhere, and `why` says why not. */
  readonly base: string | null;
  readonly why: string;
  /** An empty group whose name begins so; null if there is none to be had. */
  make(name: string): Promise<string | null>;
  /** Removes groups in which no process is; gives their names. */
  sweep(): Promise<string[]>;
}

export interface CgroupUsage {
  cpu_ms: number;
  /** With the cache that it uses, without the one that it does not; null: the kernel does not count it here. */
  memory_bytes: number | null;
}

/** For hosts without. */
export const noCgroups = (why: string): Cgroups => ({
  base: null,
  why,
  make: async () => null,
  sweep: async () => [],
});

/** proc_pid_mountinfo(5) writes blanks in octal. */
const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

interface Mount {
  /** Which part of the hierarchy is seen, and where. */
  root: string;
  at: string;
}

const mounted = async (): Promise<Mount | undefined> => {
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const [mount = '', fs = ''] = line.split(' - ');
    const [, , , root, at] = mount.split(' ');
    if (fs.startsWith('cgroup2 ') && root !== undefined && at !== undefined)
      return { root: unescaped(root), at: unescaped(at) };
  }
  return undefined;
};

/** The directory of the group in which a process is. */
const groupOf = async (pid: number | 'self', mount: Mount): Promise<string | undefined> => {
  const text = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => '');
  const path = /^0::(\/.*)$/m.exec(text)?.[1];
  const inside = path === undefined ? undefined : relative(mount.root, path);
  return inside === undefined || inside.startsWith('..') ? undefined : join(mount.at, inside);
};

/** The group that was made by that name and in which a process is; null if it is in another. */
export const cgroupNamed = async (pid: number, name: string): Promise<string | null> => {
  const mount = await mounted().catch(() => undefined);
  const group = mount && (await groupOf(pid, mount));
  return group !== undefined && basename(group).startsWith(`${name}-`) ? group : null;
};

/** Words for a shell that enters the group and becomes the program: not one instruction of it runs outside. */
export const inCgroup = (group: string): string[] => [
  ...['sh', '-c', 'echo $$ 2>/dev/null >"$0"; exec "$@"', join(group, 'cgroup.procs')],
];

/** Where groups may be made: root has the top of the hierarchy, others what was delegated to them. Gives our own directories, inner one first. */
const placeFor = async (owner: string, mount: Mount): Promise<string[] | undefined> => {
  const name = createHash('sha256').update(owner).digest('hex').slice(0, 12);
  if (process.getuid?.() === 0) return [join(mount.at, 'nexus', name), join(mount.at, 'nexus')];
  const own = await groupOf('self', mount);
  return own === undefined ? undefined : [join(own, `nexus-${name}`)];
};

/** The directory below which an owner's groups are, where there are any. */
export const cgroupBase = async (owner: string): Promise<string | undefined> => {
  const mount = await mounted().catch(() => undefined);
  return (mount && (await placeFor(owner, mount)))?.[0];
};

/** `owner` is a text that nobody else uses, such as a path. Tries whether a process can be moved. */
export const openCgroups = async (owner: string): Promise<Cgroups> => {
  const mount = await mounted().catch(() => undefined);
  if (mount === undefined) return noCgroups('there is no hierarchy of version 2');
  const ours = await placeFor(owner, mount);
  if (ours === undefined) return noCgroups("this process' own group is not seen here");
  const [base = ''] = ours;
  try {
    const group = makeGroup(ours, 'try');
    const { code } = await runAny([...inCgroup(group), 'grep', '-q', '/try-[0-9a-f]*$', '/proc/self/cgroup'], {
      timeout_ms: TRY_MS,
    });
    await removeGroup(group, ours);
    if (code !== 0) return noCgroups(`no process can be moved below ${dirname(base)}`);
  } catch (error) {
    return noCgroups(`none can be made below ${dirname(base)}: ${error instanceof Error ? error.message : error}`);
  }
  return {
    base,
    why: `below ${base}`,
    make: async name => {
      try {
        return makeGroup(ours, name);
      } catch {
        return null;
      }
    },
    sweep: () => sweep(ours),
  };
};

/** At once: it is on the way of each start, and these are no files of a disk. */
const makeGroup = (ours: readonly string[], name: string): string => {
  const [base = ''] = ours;
  const group = join(base, `${name}-${randomBytes(4).toString('hex')}`);
  // ours go with the last group in them, also just after they were made here
  for (let round = 0; ; round++) {
    try {
      mkdirSync(group);
      return group;
    } catch (error) {
      if (round === 5 || !isCode(error, 'ENOENT')) throw error;
      for (const dir of ours.toReversed()) makeParent(dir);
    }
  }
};

/** One in which no process is, so that its children can have all the controllers that it has itself. */
const makeParent = (dir: string): void => {
  try {
    mkdirSync(dir);
  } catch (error) {
    if (!isCode(error, 'EEXIST')) throw error;
  }
  try {
    const there = readFileSync(join(dir, 'cgroup.controllers'), 'utf8').trim().split(' ');
    const wanted = CONTROLLERS.filter(one => there.includes(one)).map(one => `+${one}`);
    if (wanted.length > 0) writeFileSync(join(dir, 'cgroup.subtree_control'), wanted.join(' '));
  } catch {
    // some are missing then, or it is gone again
  }
};

const isCode = (error: unknown, code: string): boolean =>
  error instanceof Error && 'code' in error && error.code === code;

/**
 * Removes a group that has done its work, and what of ours is empty then. What is left in it is ended; one that is slow to die is waited for
 * a moment, and then the removal goes on by itself.
 */
export const removeCgroup = async (group: string): Promise<void> => {
  const base = dirname(group);
  const above = dirname(base);
  const gone = removeGroup(group, basename(above) === 'nexus' ? [base, above] : [base]);
  await Promise.race([gone, sleep(PATIENCE_MS, undefined, { ref: false })]);
};

const removeGroup = async (group: string, ours: readonly string[]): Promise<void> => {
  const end = performance.now() + EMPTY_MS;
  for (let wait = 2; ; wait = Math.min(100, wait * 2)) {
    const error: unknown = await rmdir(group).then(
      () => undefined,
      e => e,
    );
    if (error === undefined || isCode(error, 'ENOENT')) break;
    if (!isCode(error, 'EBUSY') || performance.now() > end) return; // the next sweep takes it
    await writeFile(join(group, 'cgroup.kill'), '1').catch(() => {}); // kernels before 5.14 have none
    await sleep(wait);
  }
  for (const dir of ours) await rmdir(dir).catch(() => {}); // another group may be in it
};

const sweep = async (ours: readonly string[]): Promise<string[]> => {
  const [base = ''] = ours;
  const gone: string[] = [];
  for (const entry of await readdir(base, { withFileTypes: true }).catch(() => [])) {
    if (!entry.isDirectory()) continue;
    const removed = await rmdir(join(base, entry.name)).then(
      () => true,
      () => false,
    );
    if (removed) gone.push(join(base, entry.name));
  }
  for (const dir of ours) await rmdir(dir).catch(() => {});
  return gone;
};

const numberIn = (text: string, pattern: RegExp): number | null => {
  const found = pattern.exec(text)?.[1];
  return found === undefined ? null : Number(found);
};

/** What the processes of a group have used, those that ended too; undefined: the group is gone. */
export const cgroupUsage = async (group: string): Promise<CgroupUsage | undefined> => {
  const file = (name: string) => readFile(join(group, name), 'utf8').catch(() => undefined);
  const [cpu, memory, stat] = await Promise.all(['cpu.stat', 'memory.current', 'memory.stat'].map(file));
  const usec = numberIn(cpu ?? '', /^usage_usec (\d+)$/m);
  if (usec === null) return undefined;
  const idle = numberIn(stat ?? '', /^inactive_file (\d+)$/m) ?? 0;
  const memory_bytes = memory === undefined ? null : Math.max(0, Number(memory) - idle);
  return { cpu_ms: usec / 1000, memory_bytes };
};
