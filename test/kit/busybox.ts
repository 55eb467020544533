/** A root file system of BusyBox, out of the distribution's static program: what it is made of comes from `busybox --list-full`. */
import { lstat, mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/lib/proc.ts';
import { testRootfs } from './assets.ts';
import { archive, type Item } from './tar.ts';

const BUSYBOX = '/bin/busybox';

/** Why there cannot be one here. */
export const noBusybox = async (): Promise<string | undefined> => {
  const program = await readFile(BUSYBOX).catch(() => undefined);
  // a dynamic one names its loader in the first page
  if (program !== undefined && !program.subarray(0, 4096).includes('/ld-')) return undefined;
  return `there is no static busybox at ${BUSYBOX}`;
};

const DEVICES: [string, [number, number]][] = [
  ['console', [5, 1]],
  ['null', [1, 3]],
  ['zero', [1, 5]],
  ['tty', [5, 0]],
];

const RELEASE = 'ID=busybox\nPRETTY_NAME="BusyBox of the test"\n';

/** Its archive, with further entries. Its init is BusyBox's, without an inittab. */
export const busyboxRootfs = async (more_items: readonly Item[] = [], release = RELEASE): Promise<Buffer> => {
  const { stdout } = await run([BUSYBOX, '--list-full']);
  const applets = stdout.split('\n').filter(path => path !== '' && path !== 'bin/busybox' && path !== 'linuxrc');
  const homes = applets.flatMap(path =>
    path
      .split('/')
      .slice(0, -1)
      .map((_, n, all) => all.slice(0, n + 1).join('/')),
  );
  const more = ['etc', 'root', 'dev', 'proc', 'sys', 'run', 'tmp', 'var', 'var/lock'];
  const dirs = [...new Set([...homes, 'bin', 'sbin', ...more])];
  return archive(
    { name: './', type: '5', mode: 0o755 },
    ...dirs.map(
      (name): Item => ({
        name: `${name}/`,
        type: '5',
        mode: name === 'tmp' ? 0o1777 : name === 'root' ? 0o700 : 0o755,
      }),
    ),
    { name: 'bin/busybox', mode: 0o755, data: await readFile(BUSYBOX) },
    ...applets.map((name): Item => ({ name, type: '2', link: '/bin/busybox', mode: 0o777 })),
    ...DEVICES.map(([name, device]): Item => ({ name: `dev/${name}`, type: '3', device, mode: 0o666 })),
    { name: 'etc/passwd', data: 'root::0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n' },
    { name: 'etc/group', data: 'root:x:0:\nuser:x:1000:\n' },
    { name: 'etc/shadow', mode: 0o640, gid: 42, data: 'root::19000::::::\n' },
    { name: 'etc/os-release', data: release },
    ...more_items,
  );
};

/** What OpenRC is of a Debian, by where it is there: with these it runs anywhere. */
const OPENRC = [
  ...['openrc', 'openrc-run', 'supervise-daemon', 'rc-service', 'rc-update'].map(name => `usr/sbin/${name}`),
  ...['usr/bin/rc-status', 'usr/lib/rc', 'usr/lib64/ld-linux-x86-64.so.2', 'etc/rc.conf'],
  'usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2',
  ...['einfo', 'rc', 'audit', 'cap-ng', 'pam', 'pam_misc', 'selinux', 'pcre2-8', 'c'].map(
    name => `usr/lib/x86_64-linux-gnu/lib${name}.so.*`,
  ),
];

/** An inittab in the manner of Alpine: BusyBox's init, and OpenRC from its run levels. */
const INITTAB = `::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/openrc shutdown
`;

const itemOf = async (base: string, path: string): Promise<Item> => {
  const full = join(base, path);
  const info = await lstat(full);
  const name = path.replace(/^usr\//, '');
  if (info.isSymbolicLink()) return { name, type: '2', link: await readlink(full), mode: 0o777 };
  return { name, mode: info.mode & 0o7777, data: await readFile(full) };
};

/** The same with OpenRC, out of Debian's packages. */
export const openrcRootfs = async (): Promise<Buffer> => {
  const { tar } = await testRootfs(['openrc']);
  const base = await mkdtemp(join(tmpdir(), 'nexus-openrc-'));
  try {
    await run(['tar', '-xf', tar, '-C', base, '--wildcards', '--no-same-owner', ...OPENRC.map(path => `./${path}`)]);
    const found = await readdir(base, { recursive: true, withFileTypes: true });
    const paths = found.filter(file => !file.isDirectory()).map(file => join(file.parentPath, file.name));
    const items = await Promise.all(paths.map(path => itemOf(base, path.slice(base.length + 1))));
    const levels = ['sysinit', 'boot', 'default', 'shutdown'].map(
      (level): Item => ({ name: `etc/runlevels/${level}/`, type: '5', mode: 0o755 }),
    );
    return await busyboxRootfs([...items, ...levels, { name: 'etc/inittab', data: INITTAB }]);
  } finally {
    await rm(base, { recursive: true, force: true });
  }
};

/** What OpenRC is asked for is not in Alpine's minimal system, nor are terminals in a VM: BusyBox's init passes over both. */
const GETTYS = [1, 2].map(n => `tty${n}::respawn:/sbin/getty 38400 tty${n}\n`).join('');

/** The same in the manner of Alpine's minimal system: its init is BusyBox's, its inittab is written for OpenRC. */
export const alpineRootfs = (version: string): Promise<Buffer> => {
  const release = `NAME="Alpine Linux"\nID=alpine\nVERSION_ID=${version}\nPRETTY_NAME="Alpine Linux v${version.slice(0, 4)}"\n`;
  return busyboxRootfs(
    [
      { name: 'etc/inittab', data: `${INITTAB}${GETTYS}` },
      { name: 'etc/alpine-release', data: `${version}\n` },
    ],
    release,
  );
};
