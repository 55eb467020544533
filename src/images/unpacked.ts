/** The way through a directory: GNU tar unpacks the checked archive, mke2fs reads the tree. */
import { chmod } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { ensureDir } from '../lib/files.ts';
import { mke2fsArgs } from './layout.ts';
import { setRest } from './rest.ts';
import { findUnpacker } from './tools.ts';
import { merged, step, type Work } from './work.ts';

/** Where fakeroot keeps owners and devices between two steps. */
export const OWNERS = 'owners';

/** GNU tar into a directory, then mke2fs. fakeroot carries owners and devices from the one to the other in a file. */
export const fromTree = async (work: Work): Promise<void> => {
  const { tar, fakeroot } = await findUnpacker();
  const tree = await ensureDir(join(work.dir, 'tree'), 0o700);
  const state = join(work.dir, OWNERS);
  // The file is named in each step: it tells our fakeroot's daemon from others.
  const under = (...flags: string[]) => (fakeroot === undefined ? [] : [fakeroot, ...flags, '-s', state, '--']);
  if (work.scan.acls && fakeroot !== undefined)
    throw new Fault(
      'unsupported',
      'Cannot build the image: the archive has access control lists, which only root can set.',
    );
  const keep = ['--same-owner', '--numeric-owner', '--same-permissions'];
  if (work.scan.acls) keep.push('--acls');
  const argv = [...under(), tar, '-x', ...keep, '--delay-directory-restore', '-C', tree, '-f', '-'];
  await step(work, argv, { input: merged(work, 'unpack') });
  // A file that its owner may not read is closed to mke2fs too, for fakeroot cannot open it: it gets its mode in the end.
  const closed = [...work.scan.tree.nodes].filter(([, node]) => node.kind === 'file' && (node.mode & 0o400) === 0);
  const opened = fakeroot === undefined ? [] : closed;
  for (const [path] of opened)
    await chmod(Buffer.concat([Buffer.from(`${tree}/`), Buffer.from(path, 'latin1')]), 0o600);
  work.options.onProgress?.({ stage: 'write', done: 0, total: null, unit: 'bytes' });
  await step(
    work,
    [...under('-i', state), work.tools.mke2fs, ...mke2fsArgs(work.layout, work.identity, tree, work.raw)],
    {},
  );
  await setRest(work, {
    root: work.scan.tree.nodes.get(''), // mke2fs does not take its owner, mode and time from the directory
    closed: opened,
    xattrs: work.scan.xattrs.list,
  });
};
