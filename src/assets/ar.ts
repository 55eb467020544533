/**
 * A strict reader of `ar` archives as .deb packages use them (ar(5), deb(5)): the table of members of a file on disk.
 * No GNU or BSD long names, no symbol tables: a .deb has none.
 */
import type { FileHandle } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';

export interface ArMember {
  name: string;
  /** Of the content, bytes from the start of the file. */
  offset: number;
  size: number;
}

const MAGIC = '!<arch>\n';
const HEADER = 60;
const MAX_MEMBERS = 16;

const bad = (why: string): Fault => new Fault('unsupported', `Cannot read the package: ${why}.`);

const exactly = async (file: FileHandle, offset: number, size: number): Promise<Buffer> => {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(size), 0, size, offset);
  if (bytesRead !== size) throw bad('it is cut short');
  return buffer;
};

const header = (bytes: Buffer): { name: string; size: number } => {
  const text = bytes.toString('latin1');
  const fields = /^([A-Za-z0-9._+-]{1,15})\/? *$/.exec(text.slice(0, 16));
  if (text.slice(58) !== '`\n') throw bad('a member of the ar archive has no end mark');
  if (fields?.[1] === undefined) throw bad('a member of the ar archive has a bad name');
  if (!/^\d{1,12} *\d{0,6} *\d{0,6} *[0-7]{0,8} *$/.test(text.slice(16, 48))) throw bad('a member has a bad header');
  const size = /^(\d{1,10}) *$/.exec(text.slice(48, 58))?.[1];
  if (size === undefined) throw bad('a member of the ar archive has a bad size');
  return { name: fields[1], size: Number(size) };
};

/** The members, in their order. */
export const arMembers = async (file: FileHandle): Promise<ArMember[]> => {
  const total = (await file.stat()).size;
  if ((await exactly(file, 0, MAGIC.length)).toString('latin1') !== MAGIC) throw bad('it is not an ar archive');
  const members: ArMember[] = [];
  let at = MAGIC.length;
  while (at < total) {
    if (members.length === MAX_MEMBERS) throw bad(`it has more than ${MAX_MEMBERS} members`);
    const { name, size } = header(await exactly(file, at, HEADER));
    const offset = at + HEADER;
    if (offset + size > total) throw bad(`its member ${name} is cut short`);
    if (members.some(m => m.name === name)) throw bad(`its member ${name} stands there twice`);
    members.push({ name, offset, size });
    at = offset + size;
    if (size % 2 === 1 && at < total) {
      if ((await exactly(file, at, 1)).toString('latin1') !== '\n') throw bad(`its member ${name} is badly padded`);
      at++;
    }
  }
  return members;
};

/** The members of a .deb of format 2: the version, the control archive, the data archive (which is returned). */
export const debData = async (file: FileHandle): Promise<ArMember> => {
  const [version, control, data] = (await arMembers(file)).filter(m => !m.name.startsWith('_'));
  if (version?.name !== 'debian-binary' || version.size !== 4) throw bad('it does not begin with debian-binary');
  if (!/^2\.\d\n$/.test((await exactly(file, version.offset, 4)).toString('latin1')))
    throw bad('it is not of format 2');
  if (control === undefined || !control.name.startsWith('control.tar')) throw bad('it has no control archive');
  if (data === undefined || !data.name.startsWith('data.tar')) throw bad('it has no data archive');
  return data;
};
