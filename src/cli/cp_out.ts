/**
 * Copies from a VM to this host. A guest is hostile: what it sends is unpacked by tar into a fresh directory that nobody else can
 * enter, and moved from there; without --archive no set-uid, no owner and no device node comes with it.
 */
import { type FileHandle, lstat, mkdtemp, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { FsEntry } from '../api/fs.ts';
import { Unreachable } from '../client/transport.ts';
import { run } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { outBytes } from './cli.ts';
import { type Copy, counted, look, meansContent, nameIn, resumed, tarEnv } from './copy.ts';
import { moveInto, scrub } from './cp_tree.ts';

const DAY_MS = 24 * 3600 * 1000;
const isRoot = (): boolean => process.getuid?.() === 0;

/** Where it goes: into a directory that is there, else under that name. */
const targetOf = async (from: string, to: string): Promise<string> => {
  const found = await stat(to).catch(() => undefined);
  if (found?.isDirectory() === true) return meansContent(from) ? to : join(to, nameIn(from));
  const missing = to.endsWith('/') && !meansContent(from) ? to : dirname(resolve(to));
  if (!((await stat(missing).catch(() => undefined))?.isDirectory() ?? false)) {
    throw new Fault('not_found', `Cannot copy to '${plain(to)}': there is no directory '${plain(missing)}'.`);
  }
  return to;
};

/**
 * What is to be a file's place, made sure of: through a link, as cp writes, and never that of a device, a pipe or a socket, which
 * moving a file there would remove. A link that is copied takes the place of a link.
 */
const replaceable = async (target: string, entry: FsEntry): Promise<string> => {
  const cannot = (why: string, hint?: string) =>
    new Fault('invalid', `Cannot copy to '${plain(target)}': ${why}.`, { hint });
  const own = await lstat(target).catch(() => undefined);
  if (own === undefined || (own.isSymbolicLink() && entry.type !== 'file')) return target;
  const end = own.isSymbolicLink() ? await stat(target).catch(() => undefined) : own;
  if (end === undefined) throw cannot('it is a link that leads nowhere');
  if (end.isDirectory()) throw new Fault('exists', `Cannot copy to '${plain(target)}': a directory is there.`);
  if (!end.isFile()) throw cannot('it is no file', 'nexusctl cp VM:PATH - writes to standard output');
  return await realpath(target);
};

export const copyOut = async (copy: Copy, from: string, to: string): Promise<void> => {
  const entry = await copy.nexus.fs.stat({ vm: copy.vm, path: from }, { signal: copy.signal });
  if (to === '-') return await standardOutput(copy, from, entry);
  if (nameIn(from) === '' || nameIn(from) === '..') {
    if (!meansContent(from))
      throw new Fault('invalid', `Cannot copy '${plain(from)}': say ${plain(from)}/. for what is in it.`);
  }
  const target = await targetOf(from, to);
  if (entry.type === 'directory') return await treeOut(copy, from, target, entry);
  const place = await replaceable(target, entry);
  if (entry.type === 'file') await fileOut(copy, from, place, entry);
  else await treeOut(copy, from, place, entry);
};

/** A file as it is, anything else as an archive. */
const standardOutput = async (copy: Copy, from: string, entry: FsEntry): Promise<void> => {
  const { nexus, vm, signal } = copy;
  const ask = entry.type === 'file' ? nexus.fs.read : nexus.fs.export;
  using download = await ask({ vm, path: from }, { signal });
  for await (const chunk of counted(copy, download, download.length)) await outBytes(chunk, signal);
};

/** A block of most file systems: zeros of this length are left out. */
const HOLE = 4096;
const ZEROS = Buffer.alloc(HOLE);

const writeSparse = async (file: FileHandle, data: Buffer, at: number): Promise<void> => {
  const isHole = (from: number) => data.length - from >= HOLE && data.subarray(from, from + HOLE).equals(ZEROS);
  for (let from = 0; from < data.length; ) {
    let end = from;
    while (end < data.length && !isHole(end)) end = Math.min(end + HOLE, data.length);
    for (let done = from; done < end; ) {
      const { bytesWritten } = await file.write(data, done, end - done, at + done);
      done += bytesWritten;
    }
    from = end > from ? end : from + HOLE;
  }
};

/** Beside its place, from where it stood after each loss and only as the same content, then moved there. */
const fileOut = async (copy: Copy, from: string, target: string, entry: FsEntry): Promise<void> => {
  const { nexus, vm, archive, signal } = copy;
  const part = join(dirname(target), `.${basename(target).slice(0, 200)}.${process.pid}.part`);
  const file = await open(part, 'wx', 0o600);
  let at = 0;
  let etag: string | undefined;
  const read = async () => {
    using download = await nexus.fs.read({ vm, path: from, offset_bytes: at, etag }, { signal });
    etag = download.head.etag;
    const total = download.length === null ? null : at + download.length;
    for await (const chunk of counted(copy, download, total)) {
      await writeSparse(file, chunk, at);
      at += chunk.length;
    }
  };
  try {
    await resumed(signal, () => at, read);
    await file.truncate(at);
    if (archive && isRoot()) await file.chown(entry.uid, entry.gid);
    await file.chmod(Number.parseInt(entry.mode, 8) & (archive ? 0o7777 : 0o777));
    await file.utimes(entry.modified_at_ms / 1000, entry.modified_at_ms / 1000);
    await file.sync();
    await rename(part, target);
  } catch (error) {
    await rm(part, { force: true });
    throw error;
  } finally {
    await file.close();
  }
};

/** tar's flags: without --archive modes as they are but for set-uid and its kin, which it drops unless told otherwise. */
const unpacking = (copy: Copy, dir: string): string[] => {
  const kept = copy.archive
    ? ['--same-permissions', ...(isRoot() ? ['--same-owner', '--numeric-owner', '--xattrs', '--xattrs-include=*'] : [])]
    : ['--no-same-permissions', '--no-same-owner'];
  return ['sh', '-c', 'umask 0; exec tar "$@"', 'tar', '-x', ...kept, '-C', dir];
};

const treeOut = async (copy: Copy, from: string, target: string, entry: FsEntry): Promise<void> => {
  const { nexus, vm, archive, signal } = copy;
  const own = await mkdtemp(join(dirname(resolve(target)), '.nexus-cp-'));
  try {
    using download = await nexus.fs.export({ vm, path: from, devices: archive && isRoot() }, { signal });
    const input = Readable.from(counted(copy, download, null));
    const tree = await mkdtemp(join(own, 't'));
    await run(unpacking(copy, tree), { input, signal, env: tarEnv(), timeout_ms: DAY_MS });
    if (!archive) await scrub(Buffer.from(tree));
    const made = entry.type === 'directory' ? tree : join(tree, nameIn(from)); // never by the name that the guest says
    await moveInto(Buffer.from(made), Buffer.from(resolve(target)));
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    await look(copy, from, false); // it may say what has become of the VM
    throw new Fault('guest', `Cannot copy '${plain(from)}': it broke off in the middle.`, { cause: error });
  } finally {
    await rm(own, { recursive: true, force: true });
  }
};
