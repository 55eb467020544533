/** An archive as GNU tar lists it against the inodes that debugfs finds in a file system. */
import { run } from '../../src/lib/proc.ts';
import { env } from './build.ts';
import { type Found, inspect } from './tar.ts';

interface Listed {
  /** The letter of ls, `h` for a hard link. */
  type: string;
  /** Permissions as letters, then the owner's and the group's number. */
  who: string;
  /** Of a file its bytes, of a device its numbers. */
  size: string;
  seconds: number;
  /** Where a link leads. */
  target: string;
  /** Name and length. */
  xattrs: string[];
}

// after a time with a fraction the others are padded
const ENTRY = /^(.)(\S{9})\S? +(\d+)\/(\d+) +(\S+) (\S+) (\d\d:\d\d:\d\d)\S* +(.*)$/;
const clean = (name: string): string => name.replace(/^\.?\/*|\/$/g, '');

/** What GNU tar makes of an archive, by name. */
export const listed = async (path: string): Promise<Map<string, Listed>> => {
  const form = ['--numeric-owner', '--full-time', '--quoting-style=literal', '--xattrs', '--xattrs-include=*'];
  const options = { env: { ...env, TZ: 'UTC' }, max_output: 64 * 1024 * 1024, timeout_ms: 300_000 };
  const { stdout } = await run(['tar', ...form, '-tvvf', path], options);
  const entries = new Map<string, Listed>();
  let last: Listed | undefined;
  for (const line of stdout.split('\n').slice(0, -1)) {
    const xattr = /^ {2}x: +(\d+) (\S+)$/.exec(line);
    if (xattr !== null) {
      last?.xattrs.push(`${xattr[2]} ${xattr[1]}`);
      continue;
    }
    const [, type = '', mode, uid, gid, size = '', day, time, rest = ''] = ENTRY.exec(line) ?? [];
    if (type === '') throw new Error(`tar says '${line}'`);
    const [name = '', target = ''] = rest.split(type === 'l' ? ' -> ' : type === 'h' ? ' link to ' : '\n');
    const seconds = Date.parse(`${day}T${time}Z`) / 1000;
    last = { type, who: `${mode} ${uid}/${gid}`, size, seconds, target, xattrs: [] };
    entries.set(clean(name), last);
  }
  return entries;
};

const rwx = (mode: number): string => {
  const bits = [...'rwxrwxrwx'].map((letter, i) => ((mode >> (8 - i)) & 1 ? letter : '-'));
  const special: [number, number, string][] = [
    [0o4000, 2, 's'],
    [0o2000, 5, 's'],
    [0o1000, 8, 't'],
  ];
  for (const [bit, at, letter] of special) if (mode & bit) bits[at] = bits[at] === 'x' ? letter : letter.toUpperCase();
  return bits.join('');
};

const TYPES: Record<string, string> = {
  regular: '-',
  directory: 'd',
  symlink: 'l',
  'character special': 'c',
  'block special': 'b',
  FIFO: 'p',
};

/** An inode in the words of the list. ext4 keeps access lists in a form of its own, of another length. */
const told = (found: Found, links: number): string => {
  const device =
    found.device
      ?.split(':')
      .map(n => Number.parseInt(n, 10))
      .join(',') ?? '';
  const size = found.type === 'regular' ? found.size : found.type === 'symlink' ? 0 : device;
  const xattrs = found.xattrs.map(x =>
    x
      .split(' ')
      .slice(0, 2)
      .join(' ')
      .replace(/^(system\.posix_acl\S+) \d+/, '$1'),
  );
  return [
    ...[TYPES[found.type] ?? found.type, `${rwx(found.mode)} ${found.uid}/${found.gid}`, size, found.mtime],
    ...[found.target ?? '', `${links} links`, ...xattrs.sort()],
  ].join(' ');
};

const wanted = (entry: Listed, links: number, found: Found): string => {
  const size = entry.type === 'd' || entry.type === 'p' ? '' : entry.size;
  const xattrs = entry.xattrs.map(x => x.replace(/^(system\.posix_acl\S+) \d+/, '$1'));
  // debugfs shows the target of a link that is in its inode
  const target = entry.type === 'l' && found.target === undefined ? '' : entry.target;
  return [entry.type, entry.who, size, entry.seconds, target, `${links} links`, ...xattrs.sort()].join(' ');
};

/** What is not in a file system as it is in the archive, a line each; and how many inodes were compared. */
export const compareInodes = async (tar: string, raw: string): Promise<{ wrong: string[]; inodes: number }> => {
  const entries = await listed(tar);
  const paths = [...entries.keys()];
  const found = await inspect(raw, paths);
  const others = new Map<string, number>();
  for (const { type, target } of entries.values())
    if (type === 'h') others.set(clean(target), (others.get(clean(target)) ?? 0) + 1);
  const wrong: string[] = [];
  for (const [path, entry] of entries) {
    const node = found.get(path);
    if (node === undefined) wrong.push(`${path}: missing`);
    else if (entry.type === 'h') {
      if (found.get(clean(entry.target))?.inode !== node.inode) wrong.push(`${path}: not linked to ${entry.target}`);
    } else {
      const links = entry.type === 'd' ? node.links : 1 + (others.get(path) ?? 0);
      const [is, should] = [told(node, node.links), wanted(entry, links, node)];
      if (is !== should) wrong.push(`${path}: ${is}, not ${should}`);
      if (entry.type === 'l' && node.size !== Buffer.byteLength(entry.target))
        wrong.push(`${path}: ${node.size} bytes`);
    }
  }
  const { stdout } = await run(['dumpe2fs', '-h', raw], { env });
  const count = (what: string) => Number(new RegExp(`^${what}: +(\\d+)$`, 'm').exec(stdout)?.[1]);
  const inodes = new Set([...found.values()].map(node => node?.inode)).size;
  // the first ten are ext4's own, the root among them; lost+found comes from mke2fs
  const used = count('Inode count') - count('Free inodes') - 10 + 1 - 1;
  if (used !== inodes) wrong.push(`${used} inodes, not ${inodes}`);
  return { wrong, inodes };
};
