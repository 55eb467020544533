/**
 * What neither way brings over is set in the finished file system, by debugfs. Of attributes mke2fs takes one only from an archive;
 * on the way through a directory fakeroot spoils the type of a file that gets an attribute before an owner, and a host's file
 * system need not have attributes at all.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ensureDir } from '../lib/files.ts';
import { plain } from '../lib/text.ts';
import { shown } from './tar.ts';
import type { Node } from './tree.ts';
import { step, type Work } from './work.ts';
import type { Xattr } from './xattrs.ts';

export interface Rest {
  /** Its owner, mode and time. */
  root?: Node | undefined;
  /** Files that get their mode only now. */
  closed?: readonly (readonly [string, Node])[];
  xattrs: readonly Xattr[];
}

const quoted = (path: string, what: string): string => {
  if (!/["\n]/.test(path)) return `"/${path}"`;
  throw new Fault(
    'unsupported',
    `Cannot build the image: '${shown(path)}' has ${what} and a name that cannot be quoted.`,
  );
};

/** Gives the path of a file with the commands, or nothing if there is nothing to do. */
const writeCommands = async (dir: string, { root, closed = [], xattrs }: Rest): Promise<string | undefined> => {
  // how much was written at all depends on the number of commands, and that on who builds; once it is 0 it stays so
  const lines = ['set_super_value kbytes_written 0'];
  if (root !== undefined && root.ranges.length > 0) {
    const { mode, uid, gid, mtime } = root;
    const fields = { mode: `04${mode.toString(8).padStart(4, '0')}`, uid, gid, mtime: `@${Math.floor(mtime)}` };
    for (const [field, value] of Object.entries(fields)) lines.push(`set_inode_field / ${field} ${value}`);
  }
  for (const [path, { mode }] of closed)
    lines.push(`set_inode_field ${quoted(path, 'no permissions')} mode 010${mode.toString(8).padStart(4, '0')}`);
  const values = await ensureDir(join(dir, 'xattrs'), 0o700);
  for (const [i, { path, name, value }] of xattrs.entries()) {
    await writeFile(join(values, String(i)), value);
    lines.push(`ea_set -f "${join(values, String(i))}" ${quoted(path, 'extended attributes')} ${name}`);
  }
  if (lines.length === 1) return undefined;
  const file = join(dir, 'debugfs');
  await writeFile(file, Buffer.from(`${lines.join('\n')}\n`, 'latin1'));
  return file;
};

/** Sets the rest. Of attributes only those whose files are still the archive's. */
export const setRest = async (work: Work, rest: Rest): Promise<void> => {
  const { nodes } = work.scan.tree;
  const xattrs = rest.xattrs.filter(({ path }) => (nodes.get(path)?.ranges.length ?? 0) > 0);
  const commands = await writeCommands(work.dir, { ...rest, xattrs });
  if (commands === undefined) return;
  const said: string[] = [];
  const onLine = (line: string, channel: string) => channel === 'stderr' && said.push(plain(line));
  await step(work, [work.tools.debugfs, '-w', '-f', commands, work.raw], { onLine });
  // debugfs ends with 0 whatever its commands did; it greets on the same channel.
  const wrong = said.find(line => line.trim() !== '' && !/^debugfs \d/.test(line));
  if (wrong === undefined) return;
  throw new Fault('host', `Cannot build the image: extended attributes could not be set: ${wrong}.`);
};
