/**
 * Disks of images and workspaces: <data>/images/<id>/disk.raw and <data>/workspaces/<id>/disk.raw.
 *
 * INVARIANTS: a folder named by an ID that has a record holds a complete disk that was synced: it was made as `.<id>.<random>.part`
 * beside it, renamed and synced, and the record came last.
 * The disk of an image is never written again. Nothing outside the data directory is removed. Folders that are being made or
 * removed have their names in `#work`: they are no leftovers.
 */
import { randomUUID } from 'node:crypto';
import { chmod, lstat, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { ID_PATTERN, type Space } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { ensureDir, exists, removeTree } from '../lib/files.ts';
import type { Step } from '../lib/step.ts';
import { explain } from './explain.ts';
import { makeExt4 } from './format.ts';
import { errno, lengthen } from './length.ts';
import { publishDisk } from './publish.ts';
import { needRoom, promiseRoom, promiseRoomAt, type Room, type RoomPromise, roomIn } from './room.ts';
import { askSpace, plainSpace } from './space.ts';
import type { Way } from './ways.ts';

export type DiskKind = 'images' | 'workspaces';

export interface Usage {
  /** Length of the disk. */
  size_bytes: number;
  /** What it takes of the file system; blocks that clones share are counted in each. */
  allocated_bytes: number;
}

/** A folder that no record accounts for. */
export interface Leftover {
  /** Below the data directory. */
  name: string;
  used_bytes: number;
}

/** IDs of disks that have records. */
export interface Known {
  images: ReadonlySet<string>;
  workspaces: ReadonlySet<string>;
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
  /** A writable clone of a workspace that nobody writes to meanwhile, as long as that. Gives the path. */
  snapshot(from_ws_id: string, ws_id: string, signal: AbortSignal): Promise<string>;
  /** An empty sparse disk; with a label, an ext4 file system. Gives the path. */
  empty(ws_id: string, size_bytes: number, signal: AbortSignal, label?: string): Promise<string>;
  /** Lengthens the disk of a workspace; shorter is `invalid`. */
  grow(ws_id: string, size_bytes: number): Promise<void>;
  /** Removes a disk; it need not exist. */
  removeImage(id: string): Promise<void>;
  removeWs(id: string): Promise<void>;
  path(kind: DiskKind, id: string): string;
  /** `not_found` if there is no such disk. */
  usage(kind: DiskKind, id: string): Promise<Usage>;
  /** What disks take of the host, each with what it shares with others; where that is not known, or the disk is missing, null. */
  space(disks: readonly { kind: DiskKind; id: string }[]): Promise<Space[]>;
  /** What is free in the data directory, and what of that is kept back. */
  room(): Promise<Room>;
  /** Refuses what takes more than is free, with the numbers: `no_room`. `what` completes "Cannot …". */
  needRoom(what: string, needed_bytes: number): Promise<void>;
  /** The same for work that takes them little by little: until it lets go, others are refused what is promised to it. */
  promiseRoom(what: string, bytes: number): Promise<Disposable>;
  /** What was left half made, and disks that no record knows. What is not named like ours is left alone. */
  leftovers(known: Known): Promise<Leftover[]>;
  removeLeftover(leftover: Leftover): Promise<void>;
  /**
   * Removes what is half made, and whole disks whose IDs are `noted` as leftovers; gives the names. Any other that no record knows stays:
   * the state may be an older one. Only where nothing is being made: disks get their records after they are there.
   */
  sweep(known: Known, noted: ReadonlySet<string>): Promise<string[]>;
}

const PREFIX = { images: 'img_', workspaces: 'ws_' } as const;
const NOUN = { images: 'image', workspaces: 'workspace' } as const;
const PART = /^\.((?:img|ws)_[0-9a-z]{26})\.[0-9a-f-]{36}\.part$/;

export class FileDisks implements Disks {
  readonly backend: Disks['backend'];
  readonly why: string;
  readonly #data: string;
  readonly #way: Way;
  readonly #step: Step;
  readonly #probe: string;
  readonly #work = new Set<string>();
  readonly #promises = new Set<RoomPromise>();

  /** `probe`: the host's, which tells shared blocks. */
  constructor(data_dir: string, way: Way, step: Step, probe: string) {
    this.#data = data_dir;
    this.#way = way;
    this.#step = step;
    this.#probe = probe;
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
    const part = `.${id}.${randomUUID()}.part`;
    const temp = join(parent, part);
    const noun = `${NOUN[kind]} ${id}`;
    this.#work.add(part);
    try {
      if (await exists(target)) throw new Fault('exists', `Cannot make the disk of ${noun}: there is one.`);
      await fill(temp);
      signal.throwIfAborted();
      await this.#step('disk.publish', () => publishDisk(temp, target));
      return final;
    } catch (cause) {
      await removeTree(this.#data, temp).catch(() => {}); // the next sweep takes it
      throw await explain(this.#data, noun, cause);
    } finally {
      this.#work.delete(part);
    }
  }

  room(): Promise<Room> {
    return roomIn(this.#data);
  }

  async needRoom(what: string, needed_bytes: number): Promise<void> {
    await needRoom(this.#data, what, needed_bytes, this.#promises);
  }

  promiseRoom(what: string, bytes: number): Promise<Disposable> {
    return promiseRoom(this.#data, what, bytes, this.#promises);
  }

  /** Refuses before the first byte is written; to be held to the end of the copy. Holes take no room. */
  async #roomFor(source: string, noun: string): Promise<Disposable> {
    return this.promiseRoom(`make the disk of ${noun}`, (await stat(source)).blocks * 512);
  }

  importImage(source: string, id: string, signal: AbortSignal, options: { move?: boolean } = {}): Promise<string> {
    return this.#make('images', id, signal, async dir => {
      await this.#way.folder(dir, signal);
      const disk = join(dir, 'disk.raw');
      if (options.move !== true) await this.needRoom(`make the disk of image ${id}`, 0); // also where blocks are shared
      // Another file system, or another subvolume: the file cannot move there, but it can be copied.
      const moved =
        options.move === true &&
        (await rename(source, disk).then(
          () => true,
          () => false,
        ));
      if (!moved && !(await this.#way.reflink(source, disk))) {
        using _room = await this.#roomFor(source, `image ${id}`);
        await this.#way.copy(source, disk, signal);
      }
      await chmod(disk, 0o444);
      if (options.move === true && !moved) await rm(source, { force: true });
    });
  }

  async exportImage(id: string, to: string, signal: AbortSignal): Promise<void> {
    const disk = this.path('images', id);
    if (!(await exists(disk))) throw new Fault('not_found', `Cannot export image ${id}: its disk is missing.`);
    if (!(await this.#way.reflink(disk, to))) {
      const bytes = (await stat(disk)).blocks * 512;
      using _room = await promiseRoomAt(this.#data, dirname(to), `export image ${id}`, bytes, this.#promises);
      await this.#way.copy(disk, to, signal);
    }
    await chmod(to, 0o644);
  }

  clone(image_id: string, ws_id: string, size_bytes: number, signal: AbortSignal): Promise<string> {
    return this.#clone(this.path('images', image_id), `image ${image_id}`, ws_id, size_bytes, signal);
  }

  snapshot(from_ws_id: string, ws_id: string, signal: AbortSignal): Promise<string> {
    return this.#clone(this.path('workspaces', from_ws_id), `workspace ${from_ws_id}`, ws_id, undefined, signal);
  }

  #clone(from: string, noun: string, ws_id: string, size_bytes: number | undefined, signal: AbortSignal) {
    return this.#make('workspaces', ws_id, signal, async dir => {
      if (!(await exists(from))) throw new Fault('not_found', `Cannot clone ${noun}: its disk is missing.`);
      const copied = this.backend === 'copy';
      if (!copied) await this.needRoom(`make the disk of workspace ${ws_id}`, 0);
      using _room = copied ? await this.#roomFor(from, `workspace ${ws_id}`) : undefined;
      await this.#way.clone(from, dir, signal);
      const disk = join(dir, 'disk.raw');
      await chmod(disk, 0o600);
      if (size_bytes !== undefined) await lengthen(disk, size_bytes, `workspace ${ws_id}`, false);
    });
  }

  empty(ws_id: string, size_bytes: number, signal: AbortSignal, label?: string): Promise<string> {
    return this.#make('workspaces', ws_id, signal, async dir => {
      await this.needRoom(`make the disk of workspace ${ws_id}`, 0);
      await this.#way.folder(dir, signal);
      const disk = join(dir, 'disk.raw');
      await using handle = await open(disk, 'wx', 0o600);
      await handle.truncate(size_bytes);
      if (label !== undefined) await this.#step('disk.format', () => makeExt4(disk, label, signal));
    });
  }

  async grow(ws_id: string, size_bytes: number): Promise<void> {
    const disk = this.path('workspaces', ws_id);
    await this.needRoom(`lengthen the disk of workspace ${ws_id}`, 0);
    await lengthen(disk, size_bytes, `workspace ${ws_id}`).catch(async (cause: unknown) => {
      if (errno(cause) === 'ENOENT') throw new Fault('not_found', `Workspace ${ws_id} has no disk.`, { cause });
      throw await explain(this.#data, `workspace ${ws_id}`, cause);
    });
  }

  /** Renamed first: a removal that is cut off leaves no half disk under a good name. */
  async #remove(kind: DiskKind, id: string): Promise<void> {
    this.path(kind, id);
    const part = `.${id}.${randomUUID()}.part`;
    const temp = join(this.#data, kind, part);
    this.#work.add(part);
    try {
      await rename(join(this.#data, kind, id), temp);
      await removeTree(this.#data, temp);
    } catch (cause) {
      if (errno(cause) !== 'ENOENT') throw cause;
    } finally {
      this.#work.delete(part);
    }
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

  async space(disks: readonly { kind: DiskKind; id: string }[]): Promise<Space[]> {
    const paths = disks.map(({ kind, id }) => this.path(kind, id));
    return this.backend === 'copy' ? plainSpace(paths) : askSpace(this.#probe, paths);
  }

  async leftovers(known: Known): Promise<Leftover[]> {
    const found: Leftover[] = [];
    for (const kind of ['images', 'workspaces'] as const) {
      for (const name of await readdir(join(this.#data, kind)).catch(() => [])) {
        const ours = ID_PATTERN.test(name) && name.startsWith(PREFIX[kind]);
        const half = PART.test(name) && !this.#work.has(name);
        if (!half && !(ours && !known[kind].has(name))) continue;
        const stat = await lstat(join(this.#data, kind, name, 'disk.raw')).catch(() => undefined);
        found.push({ name: join(kind, name), used_bytes: (stat?.blocks ?? 0) * 512 });
      }
    }
    return found;
  }

  async removeLeftover({ name }: Leftover): Promise<void> {
    await removeTree(this.#data, join(this.#data, name));
  }

  async sweep(known: Known, noted: ReadonlySet<string>): Promise<string[]> {
    const found = (await this.leftovers(known)).filter(
      ({ name }) => PART.test(basename(name)) || noted.has(basename(name)),
    );
    for (const one of found) await this.removeLeftover(one);
    return found.map(one => one.name);
  }
}
