/**
 * Disks of images and workspaces: <data>/images/<id>/disk.raw and <data>/workspaces/<id>/disk.raw.
 *
 * INVARIANTS: a folder named by an ID holds a complete, synced disk: it was made as `.<id>.<random>.part` beside it and renamed.
 * The disk of an image is never written again. Nothing outside the data directory is removed.
 */
import { randomUUID } from 'node:crypto';
import { chmod, lstat, open, readdir, rename, rm, statfs } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { ensureDir, exists, publish, removeTree } from '../lib/files.ts';
import { formatBytes } from '../lib/size.ts';
import type { Step } from '../lib/step.ts';
import type { Way } from './ways.ts';

export type DiskKind = 'images' | 'workspaces';

export interface Usage {
  /** Length of the disk. */
  size_bytes: number;
  /** What it takes of the file system; blocks that clones share are counted in each. */
  allocated_bytes: number;
}

export interface Disks {
  readonly backend: 'btrfs' | 'reflink' | 'copy';
  /** Why this backend and not a better one. */
  readonly why: string;
  /** Makes the disk of an image from a file; with `move` the file is taken over where it can be. Gives the path; mode 0444. */
  importImage(source: string, id: string, signal: AbortSignal, options?: { move?: boolean }): Promise<string>;
  /** Copies the disk of an image into a new file, holes kept, blocks shared where they can be. */
  exportImage(id: string, to: string, signal: AbortSignal): Promise<void>;
  /** A writable clone of an image, grown to `size_bytes`. Never shrinks: `invalid`. Gives the path. */
  clone(image_id: string, ws_id: string, size_bytes: number, signal: AbortSignal): Promise<string>;
  /** An empty sparse disk. Gives the path. */
  empty(ws_id: string, size_bytes: number, signal: AbortSignal): Promise<string>;
  /** Lengthens the disk of a workspace; shorter is `invalid`. */
  grow(ws_id: string, size_bytes: number): Promise<void>;
  /** Removes a disk; it need not exist. */
  removeImage(id: string): Promise<void>;
  removeWs(id: string): Promise<void>;
  path(kind: DiskKind, id: string): string;
  /** `not_found` if there is no such disk. */
  usage(kind: DiskKind, id: string): Promise<Usage>;
  /**
   * Removes what was left half made and disks that no record knows; gives their names. Only for the start of a daemon: disks that
   * are being made are taken for leftovers. What is not named like ours is left alone.
   */
  sweep(known: { images: ReadonlySet<string>; workspaces: ReadonlySet<string> }): Promise<string[]>;
}

const PREFIX = { images: 'img_', workspaces: 'ws_' } as const;
const NOUN = { images: 'image', workspaces: 'workspace' } as const;
const PART = /^\.((?:img|ws)_[0-9a-z]{26})\.[0-9a-f-]{36}\.part$/;

const errno = (error: unknown): string | undefined =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;

/** Opens a disk for writing, sets its length, syncs it. */
const lengthen = async (path: string, size_bytes: number, noun: string): Promise<void> => {
  await using handle = await open(path, 'r+');
  const { size } = await handle.stat();
  if (size_bytes < size)
    throw new Fault(
      'invalid',
      `Cannot make ${noun} ${formatBytes(size_bytes)} long: it has ${formatBytes(size)} already, and disks do not shrink.`,
    );
  if (size_bytes > size) await handle.truncate(size_bytes);
  await handle.sync();
};

export class FileDisks implements Disks {
  readonly backend: Disks['backend'];
  readonly why: string;
  readonly #data: string;
  readonly #way: Way;
  readonly #step: Step;

  constructor(data_dir: string, way: Way, step: Step) {
    this.#data = data_dir;
    this.#way = way;
    this.#step = step;
    this.backend = way.backend;
    this.why = way.why;
  }

  path(kind: DiskKind, id: string): string {
    if (!ID_PATTERN.test(id) || !id.startsWith(PREFIX[kind]))
      throw new Fault('invalid', `'${id}' is no ID of one of the ${kind}.`);
    return join(this.#data, kind, id, 'disk.raw');
  }

  /** Makes a folder under a temporary name, fills it, publishes it. Whatever goes wrong, nothing is left. */
  async #make(kind: DiskKind, id: string, signal: AbortSignal, fill: (dir: string) => Promise<void>): Promise<string> {
    const final = this.path(kind, id);
    const parent = await ensureDir(join(this.#data, kind));
    const target = join(parent, id);
    const temp = join(parent, `.${id}.${randomUUID()}.part`);
    const noun = `${NOUN[kind]} ${id}`;
    if (await exists(target)) throw new Fault('exists', `Cannot make the disk of ${noun}: there is one.`);
    try {
      await fill(temp);
      signal.throwIfAborted();
      await this.#step('disk.publish', () => publish(temp, target));
      return final;
    } catch (cause) {
      await removeTree(this.#data, temp).catch(() => {}); // the next sweep takes it
      throw await this.#explain(noun, cause);
    }
  }

  async #explain(noun: string, cause: unknown): Promise<unknown> {
    const code = errno(cause);
    if (code === 'ENOTEMPTY' || code === 'EEXIST')
      return new Fault('exists', `Cannot make the disk of ${noun}: there is one.`, { cause });
    if (code === 'EFBIG')
      return new Fault('invalid', `Cannot make the disk of ${noun}: the file system holds no file of that length.`, {
        cause,
      });
    if (code !== 'ENOSPC' && code !== 'EDQUOT') return cause;
    const free = await this.#free();
    return new Fault('no_room', `Cannot make the disk of ${noun}: the data directory has ${formatBytes(free)} free.`, {
      hint: `free space in ${this.#data}`,
      cause,
    });
  }

  async #free(): Promise<number> {
    const fs = await statfs(this.#data);
    return fs.bavail * fs.bsize;
  }

  /** Refuses before the first byte is written. Holes take no room. */
  async #roomFor(source: string, noun: string): Promise<void> {
    const needed = (await lstat(source)).blocks * 512;
    const free = await this.#free();
    if (needed <= free) return;
    const why = `it takes ${formatBytes(needed)}, the data directory has ${formatBytes(free)} free`;
    throw new Fault('no_room', `Cannot make the disk of ${noun}: ${why}.`, { hint: `free space in ${this.#data}` });
  }

  importImage(source: string, id: string, signal: AbortSignal, options: { move?: boolean } = {}): Promise<string> {
    return this.#make('images', id, signal, async dir => {
      await this.#way.folder(dir, signal);
      const disk = join(dir, 'disk.raw');
      // Another file system, or another subvolume: the file cannot move there, but it can be copied.
      const moved =
        options.move === true &&
        (await rename(source, disk).then(
          () => true,
          () => false,
        ));
      if (!moved && !(await this.#way.reflink(source, disk))) {
        await this.#roomFor(source, `image ${id}`);
        await this.#way.copy(source, disk, signal);
      }
      await chmod(disk, 0o600);
      await lengthen(disk, (await lstat(disk)).size, `image ${id}`);
      await chmod(disk, 0o444);
      if (options.move === true && !moved) await rm(source, { force: true });
    });
  }

  async exportImage(id: string, to: string, signal: AbortSignal): Promise<void> {
    const disk = this.path('images', id);
    if (!(await exists(disk))) throw new Fault('not_found', `Cannot export image ${id}: its disk is missing.`);
    if (!(await this.#way.reflink(disk, to))) await this.#way.copy(disk, to, signal);
    await chmod(to, 0o644);
  }

  clone(image_id: string, ws_id: string, size_bytes: number, signal: AbortSignal): Promise<string> {
    return this.#make('workspaces', ws_id, signal, async dir => {
      const image = this.path('images', image_id);
      if (!(await exists(image))) throw new Fault('not_found', `Cannot clone image ${image_id}: its disk is missing.`);
      if (this.backend === 'copy') await this.#roomFor(image, `workspace ${ws_id}`);
      await this.#way.clone(image, dir, signal);
      const disk = join(dir, 'disk.raw');
      await chmod(disk, 0o600);
      await lengthen(disk, size_bytes, `workspace ${ws_id}`);
    });
  }

  empty(ws_id: string, size_bytes: number, signal: AbortSignal): Promise<string> {
    return this.#make('workspaces', ws_id, signal, async dir => {
      await this.#way.folder(dir, signal);
      const disk = join(dir, 'disk.raw');
      await (await open(disk, 'wx', 0o600)).close();
      await lengthen(disk, size_bytes, `workspace ${ws_id}`);
    });
  }

  async grow(ws_id: string, size_bytes: number): Promise<void> {
    const disk = this.path('workspaces', ws_id);
    await lengthen(disk, size_bytes, `workspace ${ws_id}`).catch(async (cause: unknown) => {
      if (errno(cause) === 'ENOENT') throw new Fault('not_found', `Workspace ${ws_id} has no disk.`, { cause });
      throw await this.#explain(`workspace ${ws_id}`, cause);
    });
  }

  /** Renamed first: a removal that is cut off leaves no half disk under a good name. */
  async #remove(kind: DiskKind, id: string): Promise<void> {
    this.path(kind, id);
    const temp = join(this.#data, kind, `.${id}.${randomUUID()}.part`);
    const gone = await rename(join(this.#data, kind, id), temp).then(
      () => false,
      (cause: unknown) => {
        if (errno(cause) === 'ENOENT') return true;
        throw cause;
      },
    );
    if (!gone) await removeTree(this.#data, temp);
  }

  removeImage(id: string): Promise<void> {
    return this.#remove('images', id);
  }

  removeWs(id: string): Promise<void> {
    return this.#remove('workspaces', id);
  }

  async usage(kind: DiskKind, id: string): Promise<Usage> {
    const path = this.path(kind, id);
    const stat = await lstat(path).catch((cause: unknown) => {
      if (errno(cause) === 'ENOENT')
        throw new Fault('not_found', `There is no disk of ${NOUN[kind]} ${id}.`, { cause });
      throw cause;
    });
    return { size_bytes: stat.size, allocated_bytes: stat.blocks * 512 };
  }

  async sweep(known: { images: ReadonlySet<string>; workspaces: ReadonlySet<string> }): Promise<string[]> {
    const removed: string[] = [];
    for (const kind of ['images', 'workspaces'] as const) {
      for (const name of await readdir(join(this.#data, kind)).catch(() => [])) {
        const ours = ID_PATTERN.test(name) && name.startsWith(PREFIX[kind]);
        if (!PART.test(name) && !(ours && !known[kind].has(name))) continue;
        await removeTree(this.#data, join(this.#data, kind, name));
        removed.push(`${kind}/${basename(name)}`);
      }
    }
    return removed;
  }
}
