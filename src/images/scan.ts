/**
 * The first reading of an archive: every entry is checked, nothing is written.
 *
 * INVARIANTS: what passes here means the same to GNU tar and to libarchive (where formats leave room, the archive is refused), so
 * that the bytes can be handed on unread. Memory grows with the number of names, not with the bytes. The hash is over the bytes
 * up to the end of the last entry; the second reading must find the same.
 */
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Blocks } from './blocks.ts';
import { sparseBytes } from './sparse.ts';
import {
  BLOCK,
  bad,
  decimal,
  type Header,
  isZero,
  MAX_PATH,
  MAX_PAX,
  type Pax,
  parseHeader,
  parsePax,
  roundUp,
  shown,
  writeEntry,
} from './tar.ts';
import { normalise, Tree } from './tree.ts';
import { collect, type Xattr } from './xattrs.ts';

/** Files whose text tells about the system. */
export const WANTED: ReadonlySet<string> = new Set([
  'etc/os-release',
  'usr/lib/os-release',
  'lib/os-release',
  'etc/inittab',
]);
export const MAX_WANTED = 64 * 1024;
/** e_machine of ELF (System V ABI). */
const MACHINES: Record<number, Arch> = { 62: 'x86_64', 183: 'aarch64' };

export interface Scan {
  tree: Tree;
  /** Directories that the archive leaves out, to be written before the byte at which they are needed. */
  inserts: { path: string; at: number; bytes: Buffer }[];
  /** Where the last entry ends. */
  end: number;
  /** SHA-256 of the bytes up to `end`. */
  sha256: string;
  /** Of all bytes of the file. */
  whole_sha256: string;
  /** Bytes and xattr blocks of all files, in 4 KiB blocks. */
  blocks: number;
  /** Newest modification time, whole seconds. */
  newest_s: number;
  /** Why libarchive inside mke2fs would not bring everything over; undefined if it does. */
  needs_tree: string | undefined;
  /** It has POSIX ACLs. */
  acls: boolean;
  xattrs: { list: Xattr[]; bytes: number };
  arch: Arch | undefined;
  /** Text of the wanted files, by name. */
  texts: Map<string, Buffer>;
}

export type Progress = (done: number, total: number) => void;

/** What stands before an entry: at most one of each. */
interface Extra {
  pax?: Pax;
  L?: string;
  K?: string;
}

const longName = (body: Buffer, at: number): string => {
  const end = body.indexOf(0);
  if (end === -1 ? body.length > MAX_PATH : end > MAX_PATH || !isZero(body.subarray(end)))
    throw bad(at, 'has a long name that cannot be');
  return body.toString('latin1', 0, end === -1 ? body.length : end);
};

/** Reads headers up to that of an entry proper. */
const readHeaders = async (blocks: Blocks): Promise<{ header: Header; block: Buffer; extra: Extra } | undefined> => {
  const extra: Extra = {};
  for (;;) {
    const at = blocks.at;
    const next = await blocks.peek(BLOCK);
    if (next === undefined || isZero(next)) {
      if (Object.keys(extra).length > 0) throw bad(at, 'is missing after its extended header');
      const second = next === undefined ? undefined : await blocks.peek(2 * BLOCK);
      if (second !== undefined && !isZero(second)) throw bad(at, 'comes after the end of the archive');
      return undefined;
    }
    const block = Buffer.from(await blocks.take(BLOCK));
    const header = parseHeader(block, at);
    const { type } = header;
    if (!'xgLK'.includes(type)) return { header, block, extra };
    if (header.size > (type === 'x' || type === 'g' ? MAX_PAX : MAX_PATH + 1))
      throw bad(at, 'has a header that is too long');
    const body = (await blocks.take(roundUp(header.size, BLOCK))).subarray(0, header.size);
    if (type === 'g') throw bad(at, 'is a pax header for all entries, which is not supported');
    if ((type === 'x' ? extra.pax : type === 'L' ? extra.L : extra.K) !== undefined)
      throw bad(at, 'has two extended headers of one kind');
    if (type === 'x') extra.pax = parsePax(body, header.name);
    else extra[type === 'L' ? 'L' : 'K'] = longName(body, at);
  }
};

/** One value where two places could give it. */
const oneOf = (name: string, plain: string, pax: string | undefined, long: string | undefined): string => {
  if (pax !== undefined && long !== undefined) throw bad(name, 'has its name in two kinds of header');
  const value = pax ?? long ?? plain;
  if (value.includes('\0')) throw bad(name, 'has a NUL in its name');
  return value;
};

const KINDS: Record<string, 'file' | 'hardlink' | 'symlink' | 'node' | 'dir'> = {
  '0': 'file',
  S: 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'node',
  '4': 'node',
  '5': 'dir',
  '6': 'node',
};

/** mke2fs copies a link's target into a buffer rounded up to 1024 and forgets the byte after it. */
export const whyTarget = (target: string): string | undefined =>
  target.length > 0 && target.length % 1024 === 0 ? 'a link target of 1024 bytes' : undefined;

/** libarchive composes and converts the names of pax headers. Attributes are set afterwards either way (rest.ts). */
const whyTree = (pax: Pax | undefined, target: string): string | undefined => {
  const why = whyTarget(target);
  if (why !== undefined) return why;
  for (const [key, value] of pax?.values ?? []) {
    if (/^SCHILY\.acl|fflags$/.test(key)) return shown(key);
    if (key === 'hdrcharset') return 'names in a character set of their own';
    if (!/^(?:path|linkpath|GNU\.sparse\.name)$/.test(key)) continue;
    const utf8 = Buffer.from(value, 'latin1').toString('utf8');
    if (Buffer.from(utf8.normalize('NFC')).toString('latin1') !== value) return 'a name that is not composed UTF-8';
  }
  return undefined;
};

interface Entry {
  header: Header;
  block: Buffer;
  pax: Pax | undefined;
  path: string;
  kind: (typeof KINDS)[string];
  /** Bytes of data after the header, without padding. */
  size: number;
  target: string;
}

const interpret = (header: Header, block: Buffer, extra: Extra): Entry => {
  const { pax } = extra;
  const name = oneOf(header.name, header.name, pax?.values.get('path'), extra.L);
  normalise(name);
  const sparse_name = pax?.values.get('GNU.sparse.name');
  const path = normalise(sparse_name ?? name);
  const kind = KINDS[header.type];
  if (kind === undefined) throw bad(path, `is of type '${shown(header.type)}', which is not supported`);
  const link = oneOf(path, header.link, pax?.values.get('linkpath'), extra.K);
  const pax_size = pax?.values.get('size');
  const bytes = pax_size === undefined ? header.size : decimal(pax_size, path);
  if (kind !== 'file' && (bytes > 0 || header.size > 0)) throw bad(path, 'has data, but is not a file');
  if (kind === 'file' && (sparse_name ?? name).endsWith('/')) throw bad(path, 'is a file with the name of a directory');
  if (kind === 'symlink' && (link === '' || link.length > MAX_PATH - 1))
    throw bad(path, 'has a link target that cannot be');
  const target = kind === 'hardlink' ? normalise(link) : kind === 'symlink' ? link : '';
  return { header, block, pax, path, kind, size: bytes, target };
};

/** Reads the data of an entry, keeps what tells about the system; gives the bytes that the file will take up. */
const readData = async (blocks: Blocks, entry: Entry, scan: Scan): Promise<number> => {
  const start = blocks.at;
  const sparse = await sparseBytes(entry, n => blocks.take(n));
  const stored = sparse?.stored ?? entry.size;
  const left = start + (sparse?.extensions ?? 0) + roundUp(entry.size, BLOCK) - blocks.at;
  const whole = blocks.at === start && sparse === undefined;
  if (whole && WANTED.has(entry.path) && entry.size <= MAX_WANTED) {
    scan.texts.set(entry.path, Buffer.from((await blocks.take(left)).subarray(0, entry.size)));
  } else {
    if (whole && scan.arch === undefined && entry.size > 64 && (entry.header.mode & 0o111) !== 0) {
      const first = await blocks.peek(BLOCK);
      // ELF, 64-bit, little endian; e_machine at 18.
      if (first?.toString('latin1', 0, 6) === '\x7fELF\x02\x01') scan.arch = MACHINES[first.readUInt16LE(18)];
    }
    await blocks.skip(left);
  }
  return stored;
};

const readEntry = async (blocks: Blocks, scan: Scan): Promise<boolean> => {
  const from = blocks.at;
  const found = await readHeaders(blocks);
  if (found === undefined) return false;
  const entry = interpret(found.header, found.block, found.extra);
  const { header, path, kind, target, pax } = entry;
  const stored = kind === 'file' ? await readData(blocks, entry, scan) : 0;
  const { mode, uid, gid } = header;
  const keys = [...(pax?.values.keys() ?? [])];
  const acls = keys.some(key => key.startsWith('SCHILY.acl.'));
  const extra = acls || keys.some(key => /xattr|selinux/.test(key)) || (kind === 'symlink' && target.length > 59);
  const node_blocks = Math.ceil(stored / 4096) + (extra ? 1 : 0);
  const mtime = Number(pax?.values.get('mtime') ?? header.mtime);
  const missing = scan.tree.add(path, {
    kind: kind ?? 'node',
    target,
    mode,
    uid: Number(pax?.values.get('uid') ?? uid),
    gid: Number(pax?.values.get('gid') ?? gid),
    mtime: Number.isFinite(mtime) ? mtime : 0,
    ranges: [{ from, to: blocks.at }],
    blocks: node_blocks,
    linked: false,
  });
  if (Number.isFinite(mtime)) scan.newest_s = Math.max(scan.newest_s, Math.ceil(mtime));
  for (const dir of missing) {
    const bytes = writeEntry({ path: dir, type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: Math.max(0, mtime || 0) });
    scan.inserts.push({ path: dir, at: from, bytes });
  }
  collect(path, pax, scan.xattrs);
  scan.blocks += node_blocks;
  scan.acls ||= acls;
  scan.needs_tree ??= whyTree(pax, target);
  return true;
};

/** First bytes of what archives are packed with. */
const PACKERS: [string, string][] = [
  ['gzip', '1f8b'],
  ['xz', 'fd377a585a00'],
  ['zstd', '28b52ffd'],
  ['bzip2', '425a68'],
];

const refusePacked = async (handle: FileHandle): Promise<void> => {
  const { buffer } = await handle.read(Buffer.alloc(6), 0, 6, 0);
  const packer = PACKERS.find(([, magic]) => buffer.toString('hex').startsWith(magic))?.[0];
  if (packer !== undefined) throw new Fault('invalid', `Cannot use the archive: it is packed with ${packer}.`);
};

/** Reads and checks a whole archive. */
export const scanArchive = async (
  handle: FileHandle,
  options: { signal: AbortSignal; onProgress?: Progress },
): Promise<Scan> => {
  const total = (await handle.stat()).size;
  await refusePacked(handle);
  const hash = createHash('sha256');
  const blocks: Blocks = new Blocks(handle, hash, () => {
    options.signal.throwIfAborted();
    options.onProgress?.(blocks.at, total);
  });
  const scan: Scan = {
    tree: new Tree(),
    inserts: [],
    end: 0,
    sha256: '',
    whole_sha256: '',
    blocks: 0,
    newest_s: 0,
    needs_tree: undefined,
    acls: false,
    xattrs: { list: [], bytes: 0 },
    arch: undefined,
    texts: new Map(),
  };
  while (await readEntry(blocks, scan));
  if (scan.tree.nodes.size === 1) throw bad(0, 'is missing: the archive is empty');
  blocks.settle();
  scan.end = blocks.at;
  scan.sha256 = hash.copy().digest('hex');
  await blocks.drain();
  scan.whole_sha256 = hash.digest('hex');
  return scan;
};
