/** Extended attributes in an archive. */
import { bad, type Pax, shown } from './tar.ts';

/** Linux's own limit is 64 KiB a value. */
const MAX_VALUE = 65_536;
/** Of all values together; they are held in memory. */
const MAX_BYTES = 64 * 1024 * 1024;

export interface Xattr {
  /** Byte strings. */
  path: string;
  name: string;
  value: Buffer;
}

const decoded = (text: string): string =>
  text.replace(/%([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));

/** The attributes of a pax header, however it names them. */
const read = (pax: Pax): Map<string, Buffer> => {
  const found = new Map<string, Buffer>();
  for (const [key, value] of pax.values) {
    if (key.startsWith('LIBARCHIVE.xattr.')) found.set(decoded(key.slice(17)), Buffer.from(value, 'base64'));
    // Its value ends in a NUL on disk.
    if (key === 'RHT.security.selinux') found.set('security.selinux', Buffer.from(`${value}\0`, 'latin1'));
  }
  for (const [key, value] of pax.values)
    if (key.startsWith('SCHILY.xattr.')) found.set(key.slice(13), Buffer.from(value, 'latin1'));
  return found;
};

/** Access control lists as the kernel shows them: version 2, then entries of 8 bytes. libext2fs turns them into ext4's own form. */
const ACL = /^system\.posix_acl_(?:access|default)$/;
const isAcl = (value: Buffer): boolean =>
  value.length > 4 && value.length % 8 === 4 && value.length <= 4 + 8 * 1024 && value.readUInt32LE() === 2;

/** Collects the attributes of one entry. */
export const collect = (path: string, pax: Pax | undefined, into: { list: Xattr[]; bytes: number }): void => {
  if (pax === undefined) return;
  for (const [name, value] of read(pax)) {
    if (!/^(?:user|trusted|security)\.[^\s"\\\0]{1,240}$/.test(name) && !(ACL.test(name) && isAcl(value)))
      throw bad(path, `has an extended attribute '${shown(name)}' that is not supported`);
    into.bytes += value.length + name.length + path.length;
    if (value.length > MAX_VALUE || into.bytes > MAX_BYTES) throw bad(path, 'has too long extended attributes');
    into.list.push({ path, name, value });
  }
};
