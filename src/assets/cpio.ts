/**
 * A writer of cpio archives in the `newc` format, for an initramfs (Linux' Documentation/driver-api/early-userspace/
 * buffer-format.rst). Deterministic: time 0, owner 0:0, numbered in the order given. Archives may stand one after the other.
 */
export interface CpioEntry {
  /** Relative, without a leading slash. */
  path: string;
  type: 'dir' | 'file' | 'char';
  mode: number;
  data?: Buffer;
  /** Major and minor number of a device. */
  rdev?: readonly [number, number];
}

const TYPES = { dir: 0o040000, file: 0o100000, char: 0o020000 } as const;
const TRAILER = 'TRAILER!!!';
const NOTHING = Buffer.alloc(0);

/** Zeros up to the next multiple of four. */
const padding = (size: number): Buffer => Buffer.alloc((4 - (size % 4)) % 4);

/** The header and name of one member; `fields` are those between the magic and the length of the name. */
const head = (path: string, fields: readonly number[]): Buffer[] => {
  const name = Buffer.from(`${path}\0`);
  const all = [...fields, name.length, 0];
  const text = Buffer.from(`070701${all.map(f => f.toString(16).padStart(8, '0')).join('')}`, 'latin1');
  return [text, name, padding(text.length + name.length)];
};

const member = (entry: CpioEntry, inode: number): Buffer[] => {
  const data = entry.data ?? NOTHING;
  if (!/^[^/\0][^\0]*$/.test(entry.path) || entry.path.length > 4000 || entry.path === TRAILER)
    throw new RangeError(`bad path in a cpio archive: ${entry.path.slice(0, 100)}`);
  if (data.length >= 2 ** 32) throw new RangeError(`${entry.path} is too long for a cpio archive`);
  const [major, minor] = entry.rdev ?? [0, 0];
  const links = entry.type === 'dir' ? 2 : 1;
  const fields = [inode, TYPES[entry.type] | entry.mode, 0, 0, links, 0, data.length, 0, 0, major, minor];
  return [...head(entry.path, fields), data, padding(data.length)];
};

/** The archive, its trailer and its padding to four bytes included. */
export const cpio = (entries: readonly CpioEntry[]): Buffer =>
  Buffer.concat([
    ...entries.flatMap((entry, i) => member(entry, i + 1)),
    ...head(TRAILER, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
  ]);

/** Entries for every folder above the given files, then the files; all sorted by path, so that folders come first. */
export const withFolders = (files: readonly CpioEntry[]): CpioEntry[] => {
  const folders = new Set<string>();
  for (const { path } of files)
    for (let cut = path.lastIndexOf('/'); cut > 0; cut = path.lastIndexOf('/', cut - 1))
      folders.add(path.slice(0, cut));
  for (const file of files) folders.delete(file.path);
  const all = [...files, ...[...folders].map(path => ({ path, type: 'dir', mode: 0o755 }) as const)];
  return all.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
};
