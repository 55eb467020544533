/** Overlays over a scanned archive: what is dropped, what is added, and the second reading that writes the result. */
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { Fault } from '../api/fault.ts';
import type { Progress, Scan } from './scan.ts';
import { BLOCK, endOfArchive, shown, type Written, writeEntry } from './tar.ts';
import { parentOf } from './tree.ts';

const CHUNK = 1024 * 1024;

/** An entry of ours. It goes through the archive's own links: `sbin/x` lands in `usr/sbin/x` where `sbin` is a link to it. */
export interface Overlay {
  path: string;
  type: 'file' | 'dir' | 'symlink';
  /** Default 0755 for directories, 0644 for files. Links have 0777. */
  mode?: number;
  uid?: number;
  gid?: number;
  data?: Uint8Array;
  target?: string;
  /** `replace` (default) drops the archive's entry of that name; `missing` gives way to it. */
  when?: 'replace' | 'missing';
}

export interface Merge {
  drops: { from: number; to: number }[];
  inserts: { at: number; bytes: Buffer }[];
  /** Entries after the archive's own. */
  tail: Buffer;
  /** All entries, and the blocks of 4 KiB that they take. */
  entries: number;
  blocks: number;
}

const lay = (scan: Scan, overlay: Overlay, merge: Merge): Written | undefined => {
  const { tree } = scan;
  const path = tree.resolve(overlay.path, false);
  const fault = (why: string) => new Fault('invalid', `Cannot add '${overlay.path}' to the image: ${why}.`);
  if (path === undefined || path === '') throw fault('the archive has links or files in its way');
  const old = tree.nodes.get(path);
  if (old !== undefined && (overlay.when === 'missing' || (overlay.type === 'dir' && old.kind === 'dir')))
    return undefined;
  if (old?.kind === 'dir') throw fault('the archive has a directory there');
  if (old?.linked) throw fault('the archive has a file there that hard links lead to');
  if (old?.range !== undefined) {
    merge.drops.push(old.range);
    tree.nodes.delete(path);
  }
  const { type, uid = 0, gid = 0, data, target } = overlay;
  const mode = overlay.mode ?? { dir: 0o755, file: 0o644, symlink: 0o777 }[type];
  return { path, type, mode, uid, gid, mtime: scan.newest_s, ...(data && { data }), ...(target && { target }) };
};

/** Puts the overlays over the archive. Their times are the archive's newest, so that the same inputs give the same bytes. */
export const planMerge = (scan: Scan, overlays: readonly Overlay[]): Merge => {
  const merge: Merge = { drops: [], inserts: scan.inserts, tail: Buffer.alloc(0), entries: 0, blocks: scan.blocks };
  const tail: Buffer[] = [];
  for (const overlay of overlays) {
    const entry = lay(scan, overlay, merge);
    if (entry === undefined) continue;
    const parents = scan.tree.add(entry.path, {
      kind: entry.type,
      target: entry.target ?? '',
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      mtime: entry.mtime,
      range: undefined,
      linked: false,
    });
    for (const path of parents)
      tail.push(writeEntry({ path, type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: scan.newest_s }));
    tail.push(writeEntry(entry));
    merge.blocks += Math.ceil((entry.data?.length ?? 0) / 4096);
  }
  merge.tail = Buffer.concat(tail);
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
  let insert = 0;
  let drop = 0;
  let at = 0;
  for (const cut of cuts) {
    while (at < cut) {
      signal.throwIfAborted();
      while (merge.drops[drop] !== undefined && (merge.drops[drop]?.to ?? 0) <= at) drop++;
      const chunk = Buffer.allocUnsafe(Math.min(CHUNK, cut - at));
      const { bytesRead } = await handle.read(chunk, 0, chunk.length, at);
      if (bytesRead === 0) break;
      const bytes = chunk.subarray(0, bytesRead);
      hash.update(bytes);
      if ((merge.drops[drop]?.from ?? Number.POSITIVE_INFINITY) > at) yield bytes;
      at += bytesRead;
    }
    for (; merge.inserts[insert]?.at === cut; insert++) yield merge.inserts[insert]?.bytes ?? Buffer.alloc(0);
  }
  if (hash.digest('hex') !== scan.sha256)
    throw new Fault('invalid', 'Cannot use the archive: it changed while it was being read.');
}

/**
 * The merged archive as a stream. Its first entry is the root directory and ours, so that no reader that guesses formats can take
 * the first bytes of a hostile archive for something else.
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
  if (merge.tail.length % BLOCK !== 0) throw new Error(`overlay ${shown('tail')} is not in whole blocks`);
  yield merge.tail;
  yield endOfArchive();
}
