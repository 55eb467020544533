/**
 * Overlays over a scanned archive: what is dropped, what is added, and the second reading that writes the result.
 *
 * INVARIANTS: there is one order: the archive, the overlays of the template as they stand in it, the defaults. What was laid last is
 * there; but a default gives way to what a template's overlay has put at its path, or deleted at or above it.
 */
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import { Ahead } from '../lib/ahead.ts';
import { MAX_WANTED, type Progress, type Scan, WANTED, whyTarget } from './scan.ts';
import { endOfArchive, MAX_PATH, shown, type Written, writeEntry } from './tar.ts';
import { type Node, normalise, parentOf, type Range } from './tree.ts';

/** An entry of ours. It goes through the archive's own links: `sbin/x` lands in `usr/sbin/x` where `sbin` is a link to it. */
export interface Overlay {
  /** With or without a slash at its beginning. */
  path: string;
  /** `delete` takes away what is there, and all below it. */
  type: 'file' | 'dir' | 'symlink' | 'delete';
  /** Default: that of the file it replaces, else 0755 for directories, 0644 for files. Links have 0777. */
  mode?: number;
  /** Default: those of what it replaces, else 0. */
  uid?: number;
  gid?: number;
  data?: Uint8Array;
  target?: string;
}

/** What every image gets unless the template says otherwise. */
export interface Default extends Overlay {
  type: 'file' | 'dir' | 'symlink';
  /**
   * `replace` (default) drops the archive's entry of that name; `missing` gives way to it; `extend` has what was there in itself, and
   * goes over a template's overlay, too.
   */
  when?: 'replace' | 'missing' | 'extend';
}

export interface Merge {
  drops: Range[];
  inserts: { path: string; at: number; bytes: Buffer }[];
  /** Entries after the archive's own, by path. */
  added: Map<string, Written>;
  /** Paths at which overlays of the template have put something, and those they have deleted. */
  theirs: Set<string>;
  deleted: Set<string>;
  /** Defaults that gave way to them. */
  given_way: string[];
  /** All entries, and the blocks of 4 KiB that they take. */
  entries: number;
  blocks: number;
}

/** What is said of an overlay that cannot be. */
const cannot = ({ type, path }: Overlay, why: string, hint?: string): Fault => {
  const what = type === 'delete' ? 'delete' : 'overlay';
  return new Fault('invalid', `Cannot ${what} '${shown(bytesOf(path))}' in the image: ${why}.`, hint ? { hint } : {});
};

const bytesOf = (text: string): string => Buffer.from(text).toString('latin1');

/** Takes an entry, and all below it, out of the archive or out of what was added. */
const take = (scan: Scan, merge: Merge, path: string, overlay: Overlay): void => {
  const gone = scan.tree.below(path);
  const link = scan.tree.leading(gone);
  if (link !== undefined)
    throw cannot(overlay, `the hard link '/${shown(link)}' leads to it`, `delete /${shown(link)} first`);
  const names = new Set(gone.map(([name]) => name));
  for (const [name, node] of gone) {
    scan.tree.nodes.delete(name);
    scan.texts.delete(name);
    merge.added.delete(name);
    merge.drops.push(...node.ranges);
    merge.blocks -= node.blocks;
  }
  merge.inserts = merge.inserts.filter(insert => !names.has(insert.path));
};

/** Puts an entry where nothing is, with the folders that it needs. */
const put = (scan: Scan, merge: Merge, entry: Written): void => {
  const { path, type: kind, mode, uid, gid, mtime, data, target } = entry;
  const blocks = Math.ceil((data?.length ?? 0) / 4096);
  const node: Node = { kind, target: target ?? '', mode, uid, gid, mtime, ranges: [], blocks, linked: false };
  for (const dir of scan.tree.add(path, node))
    merge.added.set(dir, { path: dir, type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime });
  merge.added.set(path, entry);
  merge.blocks += blocks;
  scan.needs_tree ??= whyTarget(node.target);
  if (data !== undefined && WANTED.has(path) && data.length <= MAX_WANTED) scan.texts.set(path, Buffer.from(data));
};

/** Where an overlay leads, and what is there. */
const find = (scan: Scan, overlay: Overlay): { path: string; old: Node | undefined } => {
  const relative = bytesOf(overlay.path.replace(/^\//, ''));
  const name = normalise(relative, why => cannot(overlay, `it ${why}`));
  const { type, target = '' } = overlay;
  if (type === 'symlink' && (target === '' || target.includes('\0') || Buffer.byteLength(target) >= MAX_PATH))
    throw cannot(overlay, `no link can lead to '${target.slice(0, 100)}'`);
  const path = scan.tree.resolve(name, false);
  if (path === undefined) throw cannot(overlay, 'there is a file in its way, or a circle of links');
  if (path === '') throw cannot(overlay, 'it is the root');
  return { path, old: scan.tree.nodes.get(path) };
};

const written = (scan: Scan, overlay: Overlay & { type: Written['type'] }, path: string, old?: Node): Written => {
  const { type, data, target } = overlay;
  const plain = { dir: 0o755, file: 0o644, symlink: 0o777 }[type];
  const mode = overlay.mode ?? (old?.kind === type && type === 'file' ? old.mode : plain);
  const [uid, gid] = [overlay.uid ?? old?.uid ?? 0, overlay.gid ?? old?.gid ?? 0];
  const body = {
    ...(type === 'file' && data && { data }),
    ...(type === 'symlink' && target !== undefined && { target: bytesOf(target) }),
  };
  return { path, type, mode, uid, gid, mtime: scan.newest_s, ...body };
};

/** Lays an overlay of a template. */
const lay = (scan: Scan, merge: Merge, overlay: Overlay): void => {
  const { path, old } = find(scan, overlay);
  const { type } = overlay;
  if (type === 'delete') {
    take(scan, merge, path, overlay);
    merge.deleted.add(path);
    return;
  }
  merge.theirs.add(path);
  if (old?.kind === 'dir' && type === 'dir') return;
  if (old?.kind === 'dir') throw cannot(overlay, 'there is a directory', 'delete it first');
  if (old?.kind === 'symlink' && type !== 'symlink')
    throw cannot(overlay, `there is a link to '${shown(old.target)}'`, 'overlay what it leads to, or delete it first');
  if (old !== undefined) take(scan, merge, path, overlay);
  put(scan, merge, written(scan, { ...overlay, type }, path, old));
};

/** Whether a template has deleted a path, or what is above it. What it has put there later counts. */
const isDeleted = (merge: Merge, path: string): boolean => {
  for (let at = path; at !== ''; at = parentOf(at)) if (merge.deleted.has(at)) return true;
  return false;
};

/** Whether a template says what is there, or that nothing is. */
const isTheirs = (merge: Merge, path: string): boolean => merge.theirs.has(path) || isDeleted(merge, path);

/** A file of the template where the default needs a folder: the template's words are what the reader knows. */
const refuseInWay = (scan: Scan, merge: Merge, { path }: Default): void => {
  for (let at = parentOf(path); at !== ''; at = parentOf(at)) {
    const name = scan.tree.resolve(at, false);
    const node = name === undefined ? undefined : scan.tree.nodes.get(name);
    if (name !== undefined && node !== undefined && node.kind !== 'dir' && merge.theirs.has(name))
      throw cannot({ type: 'file', path: `/${at}` }, `every image has /${path}, so it must be a folder or lead to one`);
  }
};

const findDefault = (scan: Scan, merge: Merge, overlay: Default): ReturnType<typeof find> => {
  try {
    return find(scan, overlay);
  } catch (error) {
    refuseInWay(scan, merge, overlay);
    throw error;
  }
};

const layDefault = (scan: Scan, merge: Merge, overlay: Default): void => {
  const { path, old } = findDefault(scan, merge, overlay);
  const { type, when = 'replace' } = overlay;
  if (isDeleted(merge, path) || (when !== 'extend' && merge.theirs.has(path))) {
    merge.given_way.push(path);
    return;
  }
  if (old !== undefined && (when === 'missing' || (type === 'dir' && old.kind === 'dir'))) return;
  if (old?.kind === 'dir') throw cannot(overlay, 'the archive has a directory there');
  if (old !== undefined) take(scan, merge, path, overlay);
  put(scan, merge, written(scan, { uid: 0, gid: 0, mode: 0o644, ...overlay }, path));
};

/** Puts the overlays over the archive. Their times are the archive's newest, so that the same inputs give the same bytes. */
export const planMerge = (
  scan: Scan,
  overlays: readonly Overlay[],
  /** Called when the overlays are laid: the scan then has what they made of the system. */
  defaults: (isTheirs: (path: string) => boolean) => readonly Default[] = () => [],
): Merge => {
  const merge: Merge = {
    ...{ drops: [], inserts: scan.inserts, added: new Map(), theirs: new Set(), deleted: new Set(), given_way: [] },
    ...{ entries: 0, blocks: scan.blocks },
  };
  for (const overlay of overlays) lay(scan, merge, overlay);
  for (const overlay of defaults(path => isTheirs(merge, findDefault(scan, merge, { path, type: 'file' }).path)))
    layDefault(scan, merge, overlay);
  merge.drops.sort((a, b) => a.from - b.from);
  merge.entries = scan.tree.nodes.size;
  merge.blocks += dirBlocks(scan);
  return merge;
};

/** Blocks of directories: an ext4 entry is 8 bytes and the name, in fours; blocks fill to three quarters. */
const dirBlocks = (scan: Scan): number => {
  const bytes = new Map<string, number>();
  for (const path of scan.tree.nodes.keys()) {
    if (path === '') continue;
    const parent = parentOf(path);
    const name = path.length - (parent === '' ? 0 : parent.length + 1);
    bytes.set(parent, (bytes.get(parent) ?? 24) + 8 + 4 * Math.ceil(name / 4));
  }
  let blocks = 0;
  for (const [path, node] of scan.tree.nodes)
    if (node.kind === 'dir') blocks += Math.ceil((bytes.get(path) ?? 24) / 3072);
  return blocks;
};

/** The archive's bytes up to its last entry, read again: cut at drops and inserts, and the same bytes as the first time. */
async function* copied(handle: FileHandle, scan: Scan, merge: Merge, signal: AbortSignal): AsyncGenerator<Buffer> {
  const cuts = [...new Set([scan.end, ...merge.inserts.map(i => i.at), ...merge.drops.flatMap(d => [d.from, d.to])])];
  cuts.sort((a, b) => a - b);
  const hash = createHash('sha256');
  const ahead = new Ahead(handle);
  let piece: Buffer = Buffer.alloc(0);
  let insert = 0;
  let drop = 0;
  let at = 0;
  for (const cut of cuts) {
    while (at < cut) {
      if (piece.length === 0) {
        signal.throwIfAborted();
        piece = await ahead.next();
        if (piece.length === 0) break;
        hash.update(piece.subarray(0, scan.end - at));
      }
      while (merge.drops[drop] !== undefined && (merge.drops[drop]?.to ?? 0) <= at) drop++;
      const bytes = piece.subarray(0, cut - at);
      piece = piece.subarray(bytes.length);
      if ((merge.drops[drop]?.from ?? Number.POSITIVE_INFINITY) > at) yield bytes;
      at += bytes.length;
    }
    for (; merge.inserts[insert]?.at === cut; insert++) yield merge.inserts[insert]?.bytes ?? Buffer.alloc(0);
  }
  if (hash.digest('hex') !== scan.sha256)
    throw new Fault('invalid', 'Cannot use the archive: it changed while it was being read.');
}

/**
 * The merged archive as a stream. Its first entry is the root directory and ours, so that no reader that guesses formats can take
 * the first bytes of a hostile archive for something else. What it gives is good until the next is asked for.
 */
export async function* mergedTar(
  handle: FileHandle,
  scan: Scan,
  merge: Merge,
  options: { signal: AbortSignal; onProgress?: Progress },
): AsyncGenerator<Buffer> {
  let done = 0;
  const root = { path: '.', type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: scan.newest_s } as const;
  yield writeEntry(root);
  for await (const bytes of copied(handle, scan, merge, options.signal)) {
    done += bytes.length;
    options.onProgress?.(Math.min(done, scan.end), scan.end);
    yield bytes;
  }
  for (const entry of merge.added.values()) yield writeEntry(entry);
  yield endOfArchive();
}
