/** Tar archives made by hand, good and bad ones, and what GNU tar and debugfs say of the results. */
import { run, runAny } from '../../src/lib/proc.ts';

export interface Item {
  name: string;
  type?: string;
  data?: string | Uint8Array;
  link?: string;
  mode?: number;
  uid?: number;
  gid?: number;
  mtime?: number;
  /** Overrides the size field. */
  size?: number;
  magic?: string;
  prefix?: string;
  /** major, minor */
  device?: [number, number];
  /** A pax header before it: records as they are. */
  pax?: [string, string | Uint8Array][];
  /** Last change to the header, before its checksum. */
  patch?: (block: Buffer) => void;
}

const oct = (value: number, width: number) => `${value.toString(8).padStart(width - 1, '0')}\0`;
const pad = (data: Uint8Array) => Buffer.concat([data, Buffer.alloc((512 - (data.length % 512)) % 512)]);

export const headerOf = (item: Item, size: number): Buffer => {
  const block = Buffer.alloc(512);
  block.write(item.name, 0, 100, 'latin1');
  block.write(oct(item.mode ?? 0o644, 8) + oct(item.uid ?? 0, 8) + oct(item.gid ?? 0, 8), 100, 'latin1');
  block.write(oct(item.size ?? size, 12) + oct(item.mtime ?? 1_700_000_000, 12), 124, 'latin1');
  block.write(item.type ?? '0', 156, 'latin1');
  block.write(item.link ?? '', 157, 100, 'latin1');
  block.write(item.magic ?? 'ustar\x0000', 257, 'latin1');
  if (item.device) block.write(oct(item.device[0], 8) + oct(item.device[1], 8), 329, 'latin1');
  block.write(item.prefix ?? '', 345, 'latin1');
  item.patch?.(block);
  block.fill(' ', 148, 156);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
};

export const paxBody = (records: [string, string | Uint8Array][]): Buffer =>
  Buffer.concat(
    records.map(([key, value]) => {
      const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
      let length = rest.length + 1;
      while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
      return Buffer.concat([Buffer.from(String(length)), rest]);
    }),
  );

export const entry = (item: Item): Buffer => {
  const data = Buffer.from(item.data ?? '');
  const parts: Buffer[] = [];
  if (item.pax !== undefined) {
    const body = paxBody(item.pax);
    parts.push(headerOf({ name: 'PaxHeaders/x', type: 'x' }, body.length), pad(body));
  }
  parts.push(headerOf(item, data.length), pad(data));
  return Buffer.concat(parts);
};

export const archive = (...items: (Item | Buffer)[]): Buffer =>
  Buffer.concat([...items.map(item => (Buffer.isBuffer(item) ? item : entry(item))), Buffer.alloc(1024)]);

const ESCAPES: Record<string, string> = { n: '\n', t: '\t', a: '\x07', b: '\b', f: '\f', r: '\r', v: '\v' };

/** The names in an archive as GNU tar reads them, byte strings; or its complaint. */
export const gnuNames = async (path: string): Promise<string[] | string> => {
  const env = { PATH: process.env.PATH, LC_ALL: 'C' };
  const argv = ['tar', '--quoting-style=escape', '-tf', path];
  const result = await runAny(argv, { env, max_output: 64 * 1024 * 1024 });
  if (result.code !== 0 || /Skipping|Unexpected/.test(result.stderr))
    return `tar says ${result.code}: ${result.stderr}`;
  const lines = result.stdout.split('\n').slice(0, -1);
  return lines.map(line =>
    line.replace(/\\(?:([0-7]{3})|(.))/g, (_, octal: string | undefined, char: string | undefined) =>
      octal === undefined ? (ESCAPES[char ?? ''] ?? char ?? '') : String.fromCharCode(Number.parseInt(octal, 8)),
    ),
  );
};

export interface Found {
  type: string;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  links: number;
  /** Seconds. */
  mtime: number;
  inode: number;
  /** Of a symlink. */
  target: string | undefined;
  device: string | undefined;
  /** 512-byte blocks. */
  blocks: number;
  xattrs: string[];
}

const parse = (text: string): Found | undefined => {
  const one = (pattern: RegExp) => pattern.exec(text)?.[1];
  const type = one(/Type: (.+?) {2,}/);
  if (type === undefined) return undefined;
  return {
    type: type.trim(),
    mode: Number.parseInt(one(/Mode:\s+(\d+)/) ?? '', 8),
    uid: Number(one(/User:\s+(\d+)/)),
    gid: Number(one(/Group:\s+(\d+)/)),
    size: Number(one(/Size: (\d+)/) ?? 0),
    links: Number(one(/Links: (\d+)/)),
    mtime: Number.parseInt(one(/^\s*mtime: 0x([0-9a-f]{8})/m) ?? '', 16),
    inode: Number(one(/Inode: (\d+)/)),
    target: one(/Fast link dest: "(.*)"/s),
    device: one(/Device major\/minor number: (\S+)/),
    blocks: Number(one(/Blockcount: (\d+)/)),
    xattrs: [...text.matchAll(/^ {2}(\S+) \((\d+)\)(?: = (.*))?$/gm)].map(m => `${m[1]} ${m[2]} ${m[3] ?? ''}`.trim()),
  };
};

/** What debugfs finds under each path of an ext4 image. */
export const inspect = async (raw: string, paths: string[]): Promise<Map<string, Found | undefined>> => {
  const commands = paths.map(path => `stat "/${path}"\n`).join('');
  const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8', DEBUGFS_PAGER: 'cat', PAGER: 'cat' };
  const result = await run(['debugfs', '-f', '-', raw], {
    env,
    input: Buffer.from(commands),
    max_output: 256 * 1024 * 1024,
    timeout_ms: 120_000,
  });
  const parts = result.stdout.split(/^debugfs: +stat ".*"$/m).slice(1);
  return new Map(paths.map((path, i) => [path, parse(parts[i] ?? '')]));
};
