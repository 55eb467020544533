/**
 * The leak audit: what is there that no record accounts for. Processes, sockets, mounts, files and control groups of a data directory, and
 * the open descriptors of its daemon.
 */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { VM_LIVE } from '../../src/api/vm_state.ts';
import type { Nexus } from '../../src/client/nexus.ts';
import { cgroupBase } from '../../src/lib/cgroup.ts';
import { exists } from '../../src/lib/files.ts';
import { procStat } from '../../src/lib/proc.ts';

/** What an audit has to know of a world. */
export interface Audited {
  readonly data_dir: string;
  readonly socket: string;
  readonly client: Nexus;
  daemon(): { pid: number };
  /** What the daemon had open when it came up. */
  open(): OpenCount;
}

export interface Traces {
  processes: string[];
  sockets: string[];
  mounts: string[];
  groups: string[];
  files: string[];
  descriptors: string[];
}

/** What the records say may be there. */
interface Known {
  /** Paths below the data directory that may exist, as beginnings. */
  files: RegExp;
  live: ReadonlySet<string>;
  /** A job runs: its programs and its temporary folder are its own affair. */
  jobs: boolean;
}

const oneOf = (ids: Iterable<string>): string => `(${['none', ...ids].join('|')})`;

const known = async ({ client }: Audited): Promise<Known> => {
  const [vms, ws, images, kernels, rootfs, firecrackers, jobs] = await Promise.all([
    client.vm.list({}),
    client.ws.list({}),
    client.image.list({}),
    client.kernel.list({}),
    client.rootfs.list({}),
    client.firecracker.list({}),
    client.job.list({ limit: 1000 }),
  ]);
  const ids = (records: readonly { id: string }[]) => oneOf(records.map(r => r.id));
  const live = vms.filter(vm => VM_LIVE.includes(vm.state));
  const running = jobs.filter(job => job.state === 'running');
  const parts = [
    'nexusd\\.(log|sock)|daemon\\.lock(-.*)?|state\\.db(-.*)?|faults|kernels|rootfs|firecrackers|images|initrd|jobs|vms|workspaces|tmp',
    `vms/${ids(vms)}(/(run(/(console|counted|keeper|metrics|(vmm|own)\\.log))?|console\\.log(\\.\\d+)?))?`,
    `vms/${ids(live)}/run/.*`,
    `(workspaces/${ids(ws)}|images/${ids(images)})(/disk\\.raw)?`,
    `kernels/${ids(kernels)}(/(vmlinux|modules\\.cpio))?`,
    `rootfs/${ids(rootfs)}(/rootfs\\.tar)?`,
    `firecrackers/${ids(firecrackers)}(/(firecracker|jailer))?`,
    `initrd/${ids(kernels)}-[0-9a-f]{16}\\.cpio`,
    `jobs/${ids(jobs)}\\.log`,
    // what several wait for may bear the name of one that is canceled
    running.length === 0 ? 'tmp/none' : 'tmp/.*',
  ];
  return {
    files: new RegExp(`^(${parts.join('|')})$`),
    live: new Set(live.map(vm => vm.id)),
    jobs: running.length > 0,
  };
};

const vmOf = (data_dir: string, path: string): string | undefined =>
  path.startsWith(`${data_dir}/vms/`) ? path.slice(`${data_dir}/vms/`.length).split('/')[0] : undefined;

interface Process {
  pid: number;
  ppid: number;
  cwd: string;
  env: string;
  text: string;
}

const processes = async (): Promise<Process[]> => {
  const found: Process[] = [];
  for (const name of await readdir('/proc')) {
    const stat = /^\d+$/.test(name) ? await procStat(Number(name)) : undefined;
    if (stat === undefined || stat.state === 'Z' || stat.state === 'X') continue;
    const [cwd, env, argv] = await Promise.all([
      readlink(`/proc/${name}/cwd`).catch(() => ''),
      readFile(`/proc/${name}/environ`, 'latin1').catch(() => ''),
      readFile(`/proc/${name}/cmdline`, 'latin1').catch(() => ''),
    ]);
    const text = `${name} ${argv.replaceAll('\0', ' ').trim()}`.slice(0, 200);
    found.push({ pid: stat.pid, ppid: stat.ppid, cwd: cwd.replace(/ \(deleted\)$/, ''), env: `\0${env}`, text });
  }
  return found;
};

/** What works in the data directory, carries its mark, or comes from its daemon; not what belongs to a live VM or to a job. */
const strayProcesses = async (data_dir: string, daemon: number, records: Known | undefined): Promise<string[]> => {
  const all = await processes();
  const byPid = new Map(all.map(p => [p.pid, p]));
  const live = ({ cwd }: Process) => records?.live.has(vmOf(data_dir, cwd) ?? '') === true;
  const marked = ({ env }: Process) => env.includes(`\0NEXUS_OWNER=${data_dir}\0`);
  const inside = ({ cwd }: Process) => cwd.startsWith(`${data_dir}/`);
  /** Itself and those above it, up to the daemon. */
  const line = (p: Process): Process[] => {
    const above = byPid.get(p.ppid);
    return above === undefined || p.ppid === daemon || p.ppid <= 1 ? [p] : [p, ...line(above)];
  };
  const ours = all.filter(p => {
    if (p.pid === daemon) return false;
    const ancestors = line(p);
    if (ancestors.some(live)) return false;
    const child = ancestors.at(-1)?.ppid === daemon;
    return inside(p) || ((marked(p) || child) && records?.jobs !== true);
  });
  return ours.map(p => p.text);
};

/** The daemon's own door, under the name it was bound by before it was renamed, and connections to it. */
const DOOR = /\/(\.s[^/]+\/s|nexusd\.sock)$/;

/** Lines of /proc/net/unix by inode: the path, or '' of a socket without one. */
const unixSockets = async (): Promise<Map<string, string>> => {
  const lines = (await readFile('/proc/net/unix', 'utf8')).split('\n').slice(1);
  return new Map(lines.map(line => line.trim().split(/\s+/)).map(f => [f[6] ?? '', f[7] ?? '']));
};

const straySockets = async (data_dir: string, records: Known | undefined): Promise<string[]> =>
  [...(await unixSockets()).values()].filter(
    path =>
      path.startsWith(`${data_dir}/`) &&
      !(records !== undefined && (DOOR.test(path) || records.live.has(vmOf(data_dir, path) ?? ''))),
  );

const strayMounts = async (data_dir: string): Promise<string[]> =>
  (await readFile('/proc/self/mounts', 'utf8')).split('\n').filter(line => line.includes(data_dir));

/** Control groups of VMMs; that of a live VM begins with its ID. */
const strayGroups = async (data_dir: string, records: Known | undefined): Promise<string[]> => {
  const base = await cgroupBase(data_dir);
  if (base === undefined) return [];
  const found = await readdir(base, { withFileTypes: true }).catch(() => []);
  return found
    .filter(one => one.isDirectory() && records?.live.has(one.name.split('-')[0] ?? '') !== true)
    .map(one => join(base, one.name));
};

const strayFiles = async (data_dir: string, records: Known): Promise<string[]> =>
  (await readdir(data_dir, { recursive: true })).filter(path => !records.files.test(path)).sort();

export interface OpenCount {
  pipes: number;
  /** Sockets without a path, to whatever they lead. */
  nameless: number;
  /** Neither: files, and what is no file, such as an epoll, an eventfd or an inotify. A door's connections are its clients' affair. */
  others: number;
}

const openFiles = async (pid: number): Promise<string[]> => {
  const dir = `/proc/${pid}/fd`;
  const names = await readdir(dir).catch(() => []);
  return Promise.all(names.map(name => readlink(join(dir, name)).catch(() => '')));
};

const namelessOf = async (open: readonly string[]): Promise<string[]> => {
  const paths = await unixSockets();
  return open.filter(target => target.startsWith('socket:[') && !paths.get(target.slice(8, -1)));
};

const othersOf = (open: readonly string[]): string[] => open.filter(target => !/^(pipe|socket):/.test(target));

export const countOpen = async (pid: number): Promise<OpenCount> => {
  const open = await openFiles(pid);
  const pipes = open.filter(t => t.startsWith('pipe:')).length;
  return { pipes, nameless: (await namelessOf(open)).length, others: othersOf(open).length };
};

/** What a daemon opens once, when it first wants it, and keeps: libuv's inotify, with the first file that is watched. */
const LATER = 1;

/** Files that are open though no record accounts for them, and, where no VM lives, more than when the daemon came up. */
const strayDescriptors = async (w: Audited, records: Known): Promise<string[]> => {
  if (records.jobs) return [];
  const open = await openFiles(w.daemon().pid);
  const stray = open.filter(target => {
    if (target === '' || target === '/dev/null' || /^(anon_inode|pipe|socket):/.test(target)) return false;
    if (!target.startsWith(`${w.data_dir}/`)) return true;
    return target.endsWith(' (deleted)') || !records.files.test(target.slice(w.data_dir.length + 1));
  });
  if (records.live.size > 0) return stray;
  const before = w.open();
  const pipes = open.filter(t => t.startsWith('pipe:'));
  const nameless = await namelessOf(open);
  if (pipes.length > before.pipes) stray.push(`${pipes.length} pipes, ${before.pipes} before`);
  if (nameless.length > before.nameless) stray.push(`${nameless.length} sockets, ${before.nameless} before`);
  const others = othersOf(open).sort();
  if (others.length > before.others + LATER)
    stray.push(`${others.length} others, ${before.others} before: ${others.join(' ')}`);
  return stray;
};

/** What is there now. A moment after an answer something may still be on its way out: see `audit`. */
export const traces = async (w: Audited): Promise<Traces> => {
  const { data_dir } = w;
  const records = await known(w);
  return {
    processes: await strayProcesses(data_dir, w.daemon().pid, records),
    sockets: await straySockets(data_dir, records),
    mounts: await strayMounts(data_dir),
    groups: await strayGroups(data_dir, records),
    files: (await exists(data_dir)) ? await strayFiles(data_dir, records) : [],
    descriptors: await strayDescriptors(w, records),
  };
};

const listed = (found: Partial<Traces>): string[] =>
  Object.entries(found).flatMap(([kind, all]) => all.map(one => `${kind}: ${one}`));

const SETTLE_MS = 5000;

/** Waits until `look` finds nothing; gives what is there to the end. */
const settled = async (look: () => Promise<string[]>): Promise<string[]> => {
  const end = performance.now() + SETTLE_MS;
  for (;;) {
    const found = await look();
    if (found.length === 0 || performance.now() > end) return found;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
};

/** Leaks of a world whose daemon runs; each a line. */
export const audit = (w: Audited): Promise<string[]> => settled(async () => listed(await traces(w)));

/** What is left of a data directory when neither its daemon nor a VMM may be there any more. */
export const remains = (data_dir: string): Promise<string[]> =>
  settled(async () =>
    listed({
      processes: await strayProcesses(data_dir, -1, undefined),
      sockets: await straySockets(data_dir, undefined),
      mounts: await strayMounts(data_dir),
    }),
  );

/** Open descriptors of the daemon. */
export const descriptors = async (w: Audited): Promise<number> => (await openFiles(w.daemon().pid)).length;
