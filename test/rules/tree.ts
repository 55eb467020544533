/** The project's files as the rules see them. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Path from the root -> text. */
export type Tree = ReadonlyMap<string, string>;

/** What .gitignore names, and git's own. */
const SKIPPED = new Set(['.git', 'node_modules', 'dist', '.cache']);

/** Every text file below `root`; a file with a NUL byte is no text. */
export const readTree = async (root: string): Promise<Tree> => {
  const tree = new Map<string, string>();
  const walk = async (dir: string): Promise<void> => {
    const entries = await readdir(join(root, dir), { withFileTypes: true });
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = dir === '' ? entry.name : `${dir}/${entry.name}`;
      if (SKIPPED.has(entry.name) || entry.name.endsWith('.log')) continue;
      if (entry.isDirectory()) await walk(path);
      else if (entry.isFile()) {
        const bytes = await readFile(join(root, path));
        if (!bytes.includes(0)) tree.set(path, bytes.toString('utf8'));
      }
    }
  };
  await walk('');
  return tree;
};

/** The files whose paths match. */
export const only = (tree: Tree, pattern: RegExp): Tree => new Map([...tree].filter(([path]) => pattern.test(path)));
