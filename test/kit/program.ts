/** The programs as they are released, in one file: a daemon from it is up in a third of the time. */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { bundle } from '../../packaging/bundle.ts';
import { cached } from './cache.ts';

const REPO = join(import.meta.dirname, '../..');

/** main.mjs of the sources as they are. */
export const bundledMain = async (): Promise<string> => {
  const hash = createHash('sha256').update(await readFile(join(REPO, 'package-lock.json')));
  const found = await readdir(join(REPO, 'src'), { recursive: true, withFileTypes: true });
  for (const path of found
    .filter(f => f.isFile())
    .map(f => join(f.parentPath, f.name))
    .sort())
    hash.update(path.slice(REPO.length)).update(await readFile(path));
  const { dir } = await cached('bundle', `main-${hash.digest('hex').slice(0, 16)}`, async out => {
    await bundle(out);
    return {};
  });
  return join(dir, 'main.mjs');
};
