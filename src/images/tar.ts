/** Tar blocks: numbers, names, checksums, pax records. Formats: POSIX pax (IEEE 1003.1), GNU tar's manual, "Basic Tar Format". */
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';

export const BLOCK = 512;
/** Longest path and link target, bytes (Linux PATH_MAX). */
export const MAX_PATH = 4096;
/** Longest body of a pax header. An xattr value has at most 64 KiB. */
export const MAX_PAX = 1024 * 1024;
/** Longest file, bytes: ext4 with 4 KiB blocks holds 16 TiB. */
const MAX_SIZE = 16 * 1024 ** 4;

/** Archive names are bytes; as a string here each character is one byte. */
export const shown = (name: string): string => plain(Buffer.from(name, 'latin1').toString('utf8')).slice(0, 200);

/** What is wrong with an archive, and where. */
export const bad = (name: string | number, why: string): Fault => {
  const where = typeof name === 'number' ? `at byte ${name}` : `'${shown(name)}'`;
  return new Fault('invalid', `Cannot use the archive: entry ${where} ${why}.`);
};

/** Bytes up to the first NUL, as a byte string. */
export const text = (bytes: Buffer): string => {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end === -1 ? bytes.length : end);
};

export const roundUp = (n: number, unit: number): number => Math.ceil(n / unit) * unit;

/** An octal field, or base 256 where its first byte is 0x80. Undefined if it is anything else. */
export const number = (field: Buffer): number | undefined => {
  if (field[0] === 0x80) {
    let value = 0;
    for (const byte of field.subarray(1)) value = value * 256 + byte;
    return Number.isSafeInteger(value) ? value : undefined;
  }
  const match = /^ *([0-7]*)(?:[ \0][\s\S]*)?$/.exec(field.toString('latin1'));
  if (match === null) return undefined;
  return match[1] === undefined || match[1] === '' ? 0 : Number.parseInt(match[1], 8);
};

export const size = (field: Buffer, where: number | string): number => {
  const value = number(field);
  if (value === undefined || value > MAX_SIZE) throw bad(where, 'has a size that cannot be');
  return value;
};

export const isZero = (block: Buffer): boolean => block.every(byte => byte === 0);

const sum = (block: Buffer): number => {
  let total = 8 * 32; // the checksum field counts as spaces
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) total += block[i] ?? 0;
  return total;
};

export interface Header {
  /** The name of the header itself; a pax or GNU long name goes before it. */
  name: string;
  type: string;
  size: number;
  mode: number;
  uid: number;
  gid: number;
  /** Seconds. */
  mtime: number;
  link: string;
  /** GNU's variant, the only one in which type S means a sparse file. */
  gnu: boolean;
}

/** Reads a header; refuses what two readers of tar could take for two things. */
export const parseHeader = (block: Buffer, at: number): Header => {
  if (number(block.subarray(148, 156)) !== sum(block))
    throw bad(at, 'has a wrong checksum, or this is not a tar archive');
  const magic = block.toString('latin1', 257, 265);
  const posix = magic === 'ustar\x0000';
  if (!posix && magic !== 'ustar  \0' && magic !== '\0'.repeat(8)) throw bad(at, 'has an unknown magic');
  // star's variant shortens the prefix field: another reader would see another name.
  if (posix && block.toString('latin1', 508, 512) === 'tar\0')
    throw bad(at, 'is in the format of star, which is not supported');
  const name = text(block.subarray(0, 100));
  const prefix = posix ? text(block.subarray(345, 500)) : '';
  const full = prefix === '' ? name : `${prefix}/${name}`;
  const field = (from: number, to: number) => {
    const value = number(block.subarray(from, to));
    // A time before 1970 is base 256 with its sign set.
    if (value === undefined && !(from === 136 && block[from] === 0xff)) throw bad(full, 'has a number that cannot be');
    return value ?? 0;
  };
  const type = block.toString('latin1', 156, 157);
  if (type === '3' || type === '4') for (const at of [329, 337]) field(at, at + 8);
  return {
    name: full,
    type: type === '\0' ? '0' : type,
    size: size(block.subarray(124, 136), full),
    mode: field(100, 108) & 0o7777,
    uid: field(108, 116),
    gid: field(116, 124),
    mtime: field(136, 148),
    link: text(block.subarray(157, 257)),
    gnu: magic === 'ustar  \0',
  };
};

/** Keys that may appear in the header of one entry. What is not here could change what an entry means, and is refused. */
const PAX_KEYS =
  /^(?:path|linkpath|size|uid|gid|uname|gname|[amc]time|comment|hdrcharset|GNU\.sparse\.(?:major|minor|name|realsize|size|numblocks|offset|numbytes|map)|(?:SCHILY|LIBARCHIVE)\.xattr\..+|SCHILY\.(?:acl\.(?:access|default)|dev|ino|nlink|filetype|fflags|devmajor|devminor)|LIBARCHIVE\.creationtime|RHT\.security\.selinux)$/s;
/** The one form of sparse file (0.0) that repeats keys. */
const REPEATED = new Set(['GNU.sparse.offset', 'GNU.sparse.numbytes']);

/** Records of a pax header: key to value, both byte strings; repeated keys of sparse files become a list. */
export interface Pax {
  values: Map<string, string>;
  /** GNU.sparse 0.0: offset, length, offset, length … */
  regions: number[];
}

export const decimal = (value: string, name: string): number => {
  if (!/^\d{1,15}$/.test(value)) throw bad(name, 'has a number that cannot be');
  return Number(value);
};

export const parsePax = (body: Buffer, name: string): Pax => {
  const pax: Pax = { values: new Map(), regions: [] };
  let at = 0;
  while (at < body.length) {
    const space = body.indexOf(0x20, at);
    const digits = space === -1 || space - at > 8 ? '' : body.toString('latin1', at, space);
    const end = at + Number(digits);
    const equals = body.indexOf(0x3d, space);
    if (!/^[1-9]\d*$/.test(digits) || end > body.length || body[end - 1] !== 0x0a || equals === -1 || equals >= end)
      throw bad(name, 'has a broken pax header');
    const key = body.toString('latin1', space + 1, equals);
    const value = body.toString('latin1', equals + 1, end - 1);
    if (!PAX_KEYS.test(key)) throw bad(name, `has a pax header '${shown(key)}' that is not supported`);
    if (REPEATED.has(key)) {
      if (key.endsWith('offset') !== (pax.regions.length % 2 === 0)) throw bad(name, 'has a broken sparse map');
      pax.regions.push(decimal(value, name));
    } else if (pax.values.has(key)) throw bad(name, `has the pax header '${shown(key)}' twice`);
    else pax.values.set(key, value);
    at = end;
  }
  return pax;
};

/** A number field: octal, or base 256 where it is too long for that. */
const put = (block: Buffer, value: number, at: number, width: number): void => {
  const whole = Math.max(0, Math.floor(value));
  if (whole < 8 ** (width - 1)) {
    block.write(`${whole.toString(8).padStart(width - 1, '0')}\0`, at, 'latin1');
    return;
  }
  block[at] = 0x80;
  for (let i = at + width - 1, rest = whole; i > at; i--, rest = Math.floor(rest / 256)) block[i] = rest % 256;
};

export interface Written {
  /** A byte string, relative, without a slash at its end. */
  path: string;
  type: 'file' | 'dir' | 'symlink';
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
  data?: Uint8Array;
  target?: string;
}

const header = (name: string, type: string, bytes: number, entry: Written): Buffer => {
  const block = Buffer.alloc(BLOCK);
  block.write(name.slice(0, 100), 0, 'latin1');
  [entry.mode, entry.uid, entry.gid].forEach((value, i) => {
    put(block, value, 100 + 8 * i, 8);
  });
  put(block, bytes, 124, 12);
  put(block, entry.mtime, 136, 12);
  block.write(type, 156, 'latin1');
  block.write((entry.target ?? '').slice(0, 100), 157, 'latin1');
  block.write('ustar  \0', 257, 'latin1');
  block.write(`${sum(block).toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
};

const padded = (data: Uint8Array): Buffer[] => [
  Buffer.from(data.buffer, data.byteOffset, data.byteLength),
  Buffer.alloc(roundUp(data.length, BLOCK) - data.length),
];

/** One entry in GNU format; long names go before it as type L and K, which carry any bytes. */
export const writeEntry = (entry: Written): Buffer => {
  const name = entry.type === 'dir' ? `${entry.path}/` : entry.path;
  const parts: Buffer[] = [];
  const long = (type: string, value: string) => {
    const data = Buffer.from(`${value}\0`, 'latin1');
    const meta: Written = { path: '', type: 'file', mode: 0o644, uid: 0, gid: 0, mtime: 0 };
    parts.push(header('././@LongLink', type, data.length, meta), ...padded(data));
  };
  if (name.length > 100) long('L', name);
  if ((entry.target ?? '').length > 100) long('K', entry.target ?? '');
  const data = entry.data ?? new Uint8Array();
  parts.push(header(name, { file: '0', symlink: '2', dir: '5' }[entry.type], data.length, entry), ...padded(data));
  return Buffer.concat(parts);
};

/** The end of an archive. */
export const endOfArchive = (): Buffer => Buffer.alloc(2 * BLOCK);
