/**
 * The index files that kmod's modprobe reads (`modules.dep.bin` and its kin; it does not read the text files): a trie. Numbers are
 * big endian. Node: prefix, ended by a zero byte; first and last child character and an offset for each between them; number of
 * values, and for each its priority and its text, ended by a zero byte. Three high bits of an offset say which of these are there.
 * Format: kmod's libkmod/libkmod-index.h.
 */
const MAGIC = 0xb007f457;
const VERSION = 0x00020001;
const [PREFIX, VALUES, CHILDREN] = [0x80000000, 0x40000000, 0x20000000];

export interface IndexEntry {
  key: string;
  value: string;
}

const u32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value >>> 0);
  return buffer;
};

const zeroEnded = (text: string): Buffer => Buffer.from(`${text}\0`, 'latin1');

const commonPrefix = (keys: readonly string[]): string => {
  const [first = '', ...rest] = keys;
  let length = first.length;
  for (const key of rest) while (key.slice(0, length) !== first.slice(0, length)) length--;
  return first.slice(0, length);
};

/** Writes the index; entries of one key keep their order, which is their priority. */
export const moduleIndex = (entries: readonly IndexEntry[]): Buffer => {
  const bad = entries.find(e => !/^[\x01-\x7f]+$/.test(e.key) || /[\0\n]/.test(e.value));
  if (bad !== undefined) throw new RangeError(`bad key in a module index: ${bad.key.slice(0, 100)}`);
  const out: Buffer[] = [u32(MAGIC), u32(VERSION), u32(0)];
  let size = 12;
  const write = (...parts: Buffer[]): void => {
    for (const part of parts) {
      out.push(part);
      size += part.length;
    }
  };
  /** Writes a node, its children first, and gives its offset with the bits. */
  const node = (below: readonly IndexEntry[]): number => {
    const prefix = commonPrefix(below.map(e => e.key));
    const values = below.filter(e => e.key === prefix);
    const groups = new Map<number, IndexEntry[]>();
    for (const { key, value } of below.filter(e => e.key !== prefix)) {
      const char = key.charCodeAt(prefix.length);
      const group = groups.get(char) ?? [];
      group.push({ key: key.slice(prefix.length + 1), value });
      groups.set(char, group);
    }
    const [first, last] = [Math.min(...groups.keys()), Math.max(...groups.keys())];
    const offsets: number[] = [];
    for (let char = first; char <= last; char++) offsets.push(groups.has(char) ? node(groups.get(char) ?? []) : 0);
    const at = size;
    if (prefix !== '') write(zeroEnded(prefix));
    if (groups.size > 0) write(Buffer.from([first, last]), ...offsets.map(u32));
    if (values.length > 0) write(u32(values.length), ...values.flatMap(({ value }, i) => [u32(i), zeroEnded(value)]));
    return (
      (at | (prefix === '' ? 0 : PREFIX) | (groups.size > 0 ? CHILDREN : 0) | (values.length > 0 ? VALUES : 0)) >>> 0
    );
  };
  const root = node(entries);
  out[2] = u32(root);
  return Buffer.concat(out, size);
};

/** As kmod writes and looks up an alias: `-` is `_`, but not inside brackets. */
export const normalAlias = (alias: string): string =>
  alias.replace(/\[[^\]]*\]|-/g, part => (part === '-' ? '_' : part));
