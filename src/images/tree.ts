/**
 * The names of an archive.
 *
 * INVARIANTS: keys are normalised (no '.', no '..', no empty part, no slash at either end; the root is ''). Every parent of a
 * key is a key and a directory, so no name goes through a link. A key that is not a directory appears once. A hard link's target is
 * an earlier key that is not a directory.
 */
import type { Fault } from '../api/fault.ts';
import { bad, MAX_PATH, shown } from './tar.ts';

/** Entries and levels: far more than any system has, few enough to hold in memory. */
const MAX_ENTRIES = 2_000_000;
const MAX_NAME_BYTES = 256 * 1024 * 1024;
const MAX_DEPTH = 256;

export interface Range {
  from: number;
  to: number;
}

export interface Node {
  kind: 'dir' | 'file' | 'symlink' | 'hardlink' | 'node';
  /** Of a symlink: as it stands. Of a hard link: the normalised name. */
  target: string;
  mode: number;
  uid: number;
  gid: number;
  /** Seconds. */
  mtime: number;
  /** Bytes of the archive that hold it, headers and padding included. A directory may be there twice; none: it is not in the archive. */
  ranges: readonly Range[];
  /** Blocks of 4 KiB that it takes. */
  blocks: number;
  /** A hard link leads here. */
  linked: boolean;
}

/** 'a/./b/' -> 'a/b'. Refuses what could leave the root, with the fault that `wrong` makes of the reason. */
export const normalise = (name: string, wrong: (why: string) => Fault = why => bad(name, why)): string => {
  if (name === '') throw wrong('has no name');
  if (name.length > MAX_PATH) throw wrong(`has a name longer than ${MAX_PATH} bytes`);
  if (name.includes('\0')) throw wrong('has a NUL in its name');
  if (name.startsWith('/')) throw wrong('has an absolute name');
  const parts = name.split('/').filter(part => part !== '' && part !== '.');
  if (parts.includes('..')) throw wrong("has '..' in its name");
  if (parts.length > MAX_DEPTH) throw wrong(`is deeper than ${MAX_DEPTH} levels`);
  if (parts.some(part => part.length > 255)) throw wrong('has a part of more than 255 bytes');
  return parts.join('/');
};

export const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')));

const dirOf = (mtime: number): Node => ({
  ...{ kind: 'dir', target: '', mode: 0o755, uid: 0, gid: 0, mtime, ranges: [], blocks: 0, linked: false },
});

export class Tree {
  readonly nodes = new Map<string, Node>([['', dirOf(0)]]);
  #bytes = 0;

  /** Adds an entry; gives the parents that the archive has not named before, outermost first. */
  add(path: string, node: Node): string[] {
    const parents = this.#parents(path);
    const old = this.nodes.get(path);
    if (old !== undefined && (old.kind !== 'dir' || node.kind !== 'dir'))
      throw bad(path, path === '' ? 'is the root but not a directory' : 'is in the archive twice');
    if (node.kind === 'hardlink') this.#link(path, node.target);
    this.#set(path, old === undefined ? node : { ...node, ranges: [...old.ranges, ...node.ranges] });
    return parents;
  }

  /** An entry and all that is below it. */
  below(path: string): [string, Node][] {
    const node = this.nodes.get(path);
    if (node === undefined) return [];
    if (node.kind !== 'dir') return [[path, node]];
    return [...this.nodes].filter(([name]) => name === path || name.startsWith(`${path}/`));
  }

  /** A hard link that stays and leads to one of these entries. */
  leading(to: readonly [string, Node][]): string | undefined {
    const names = new Set(to.filter(([, node]) => node.linked).map(([name]) => name));
    if (names.size === 0) return undefined;
    const all = new Set(to.map(([name]) => name));
    for (const [name, { kind, target }] of this.nodes)
      if (kind === 'hardlink' && names.has(target) && !all.has(name)) return name;
    return undefined;
  }

  #link(path: string, target: string): void {
    const to = this.nodes.get(target);
    if (to === undefined || to.kind === 'dir')
      throw bad(path, `is a hard link to '${shown(target)}', which is not an earlier file of the archive`);
    to.linked = true;
  }

  #parents(path: string): string[] {
    const missing: string[] = [];
    for (let at = path === '' ? '' : parentOf(path); at !== ''; at = parentOf(at)) {
      const node = this.nodes.get(at);
      if (node?.kind === 'dir') break;
      if (node !== undefined) throw bad(path, `goes through '${shown(at)}', which is not a directory`);
      missing.unshift(at);
    }
    for (const dir of missing) this.#set(dir, dirOf(0));
    return missing;
  }

  #set(path: string, node: Node): void {
    this.#bytes += path.length + node.target.length;
    if (this.nodes.size >= MAX_ENTRIES || this.#bytes > MAX_NAME_BYTES) throw bad(path, 'is one entry too many');
    this.nodes.set(path, node);
  }

  /**
   * Where a path leads inside the root, links of its directories followed as a process in that root would follow them; the last
   * part is followed only with `last`. Undefined if it goes nowhere (a missing parent is kept: it can be made) or in a circle.
   */
  resolve(path: string, last: boolean): string | undefined {
    const todo = path.split('/');
    const done: string[] = [];
    let hops = 0;
    for (let part = todo.shift(); part !== undefined; part = todo.shift()) {
      if (part === '' || part === '.') continue;
      if (part === '..') {
        done.pop();
        continue;
      }
      const here = [...done, part].join('/');
      const node = this.nodes.get(here);
      if (node?.kind === 'symlink' && (last || todo.length > 0)) {
        if (++hops > 40) return undefined;
        if (node.target.startsWith('/')) done.length = 0;
        todo.unshift(...node.target.split('/'));
        continue;
      }
      if (todo.length > 0 && node !== undefined && node.kind !== 'dir') return undefined;
      done.push(part);
    }
    return done.join('/');
  }

  /** The file that a path leads to, and its name: symlinks and hard links followed. */
  file(path: string): { path: string; node: Node } | undefined {
    let at = this.resolve(path, true);
    for (let hops = 0; at !== undefined && hops < 40; hops++) {
      const node = this.nodes.get(at);
      if (node === undefined || node.kind !== 'hardlink') return node?.kind === 'file' ? { path: at, node } : undefined;
      at = node.target;
    }
    return undefined;
  }
}
