/** Copies from this host into a VM. */
import { randomBytes } from 'node:crypto';
import { createReadStream, type Stats } from 'node:fs';
import { lstat } from 'node:fs/promises';
import { basename, resolve } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import { through } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { below, type Copy, counted, look, meansContent, resumed, tarEnv } from './copy.ts';

/** Files from this size on are worth going on with after a loss. */
const LARGE = 8 * 1024 * 1024;
const DAY_MS = 24 * 3600 * 1000;

/** Where it goes: into a directory that is there, else under that name. */
const targetOf = async (copy: Copy, from: string, to: string): Promise<string> => {
  const found = await look(copy, to, true);
  if (found?.type === 'directory') return meansContent(from) ? to : below(to, basename(resolve(from)));
  if (found === undefined && to.endsWith('/') && !meansContent(from)) {
    throw new Fault('not_found', `Cannot copy to '${plain(to)}': the VM has no such directory.`);
  }
  return to;
};

const lookHere = (path: string): Promise<Stats> =>
  lstat(path).catch((cause: unknown) => {
    const why = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT' ? 'there is no such file' : cause;
    throw new Fault('not_found', `Cannot copy '${plain(path)}': ${why}.`, { cause });
  });

export const copyIn = async (copy: Copy, from: string, to: string): Promise<void> => {
  if (from === '-') return await standardInput(copy, to);
  const info = await lookHere(from);
  const target = await targetOf(copy, from, to);
  if (info.isDirectory()) return await treeIn(copy, from, '.', target);
  if (info.isSymbolicLink()) return await linkIn(copy, from, target);
  if (!info.isFile()) throw new Fault('invalid', `Cannot copy '${plain(from)}': it is no file, directory or link.`);
  const there = await look(copy, target, false);
  // A link is written through, as cp does it: what is moved into its place would be another file.
  if (info.size >= LARGE && there?.type !== 'link') return await largeFile(copy, from, target, info);
  const body = Readable.from(counted(copy, createReadStream(from), info.size));
  await copy.nexus.fs.write({ vm: copy.vm, path: target, ...attributes(copy, info) }, { body, signal: copy.signal });
};

/** Into a directory goes what an archive holds, as `cp VM:DIR -` writes it; else it is the content of a file. */
const standardInput = async (copy: Copy, to: string): Promise<void> => {
  const { nexus, vm, signal } = copy;
  const body = Readable.from(counted(copy, process.stdin, null));
  try {
    if ((await look(copy, to, true))?.type === 'directory') await nexus.fs.import({ vm, path: to }, { body, signal });
    else await nexus.fs.write({ vm, path: to }, { body, signal });
  } finally {
    process.stdin.destroy(); // else it keeps us here until somebody ends it
  }
};

/** What a copy keeps: of the mode set-uid and set-gid only with the owner. */
const attributes = ({ archive }: Copy, info: Stats) => ({
  mode: (info.mode & (archive ? 0o7777 : 0o777)).toString(8).padStart(4, '0'),
  ...(archive ? { uid: info.uid, gid: info.gid } : {}),
  modified_at_ms: Math.floor(info.mtimeMs),
});

/** One member of a directory of this host, and all in it, packed by tar, into a directory of the VM. */
const treeIn = async (copy: Copy, dir: string, member: string, target: string): Promise<void> => {
  const { nexus, vm, archive, signal } = copy;
  const owners = archive
    ? ['--numeric-owner', '--xattrs']
    : ['--owner=0', '--group=0', '--numeric-owner', '--mode=ug-s'];
  const argv = ['tar', '-c', '--sparse', '--format=posix', ...owners, '-C', dir, '--', member];
  const packed = through(argv, Readable.from([]), { signal, env: tarEnv(), timeout_ms: DAY_MS });
  const body = Readable.from(counted(copy, packed, null));
  await nexus.fs.import({ vm, path: target }, { body, signal });
};

const hidden = (target: string): string =>
  `${target.slice(0, target.lastIndexOf('/'))}/.nexus-cp-${randomBytes(8).toString('hex')}`;

/** A link, unpacked beside its place and moved there. */
const linkIn = async (copy: Copy, from: string, target: string): Promise<void> => {
  const { nexus, vm, signal } = copy;
  const [dir, name] = [resolve(from, '..'), basename(resolve(from))];
  const temp = hidden(target);
  try {
    await treeIn(copy, dir, name, temp);
    await nexus.fs.rename({ vm, path: below(temp, name), new_path: target, replace: true }, { signal });
  } finally {
    await nexus.fs.remove({ vm, path: temp, recursive: true }).catch(() => {}); // the first error says why
  }
};

/** Beside its place, from where it stood after each loss, then moved there. */
const largeFile = async (copy: Copy, from: string, target: string, info: Stats): Promise<void> => {
  const { nexus, vm, signal } = copy;
  const temp = hidden(target);
  let at = 0;
  let begun = false;
  const part = async () => {
    if (begun) at = (await look(copy, temp, false))?.size_bytes ?? 0;
    begun = true;
    const now = await lookHere(from);
    if (now.mtimeMs !== info.mtimeMs || now.size !== info.size)
      throw new Fault('bad_state', `Cannot copy '${plain(from)}': it has changed meanwhile.`);
    const body = Readable.from(counted(copy, createReadStream(from, { start: at }), info.size));
    await nexus.fs.write({ vm, path: temp, offset_bytes: at, mode: '0600' }, { body, signal });
  };
  try {
    const dir = target.slice(0, target.lastIndexOf('/')) || '/';
    await nexus.fs.stat({ vm, path: dir, follow: true }, { signal });
    await resumed(signal, () => at, part);
    await nexus.fs.chmod({ vm, path: temp, ...attributes(copy, info) }, { signal });
    await nexus.fs.rename({ vm, path: temp, new_path: target, replace: true }, { signal });
  } catch (error) {
    await nexus.fs.remove({ vm, path: temp }).catch(() => {}); // the first error says why
    throw error;
  }
};
