/** A root file system of BusyBox, out of the distribution's static program: what it is made of comes from `busybox --list-full`. */
import { readFile } from 'node:fs/promises';
import { run } from '../../src/lib/proc.ts';
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

/** Its archive. Its init is BusyBox's, without an inittab. */
export const busyboxRootfs = async (): Promise<Buffer> => {
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
    { name: 'etc/os-release', data: 'ID=busybox\nPRETTY_NAME="BusyBox of the test"\n' },
  );
};
