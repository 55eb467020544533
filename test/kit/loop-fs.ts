/** Real file systems in loop files, for tests that ask what a file system does. */
import { execFileSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/lib/proc.ts';

export type FsKind = 'btrfs' | 'xfs' | 'ext4';

const MKFS: Record<FsKind, string[]> = {
  btrfs: ['mkfs.btrfs', '-q'],
  xfs: ['mkfs.xfs', '-q', '-m', 'reflink=1'],
  ext4: ['mkfs.ext4', '-q', '-F', '-m', '0'],
};
const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C' };

export interface LoopFs extends AsyncDisposable {
  /** Where it is mounted; anybody may write there. */
  dir: string;
}

/** Makes and mounts one, or says why it cannot be. It is unmounted at disposal, and at the latest when the process exits. */
export const loopFs = async (kind: FsKind, mib: number, parent = tmpdir()): Promise<LoopFs | string> => {
  if (process.getuid?.() !== 0) return 'mounting needs root';
  const base = await mkdtemp(join(parent, `nexus-fs-${kind}-`));
  const [file, dir] = [join(base, 'fs.img'), join(base, 'mnt')];
  const unmount = () => {
    try {
      execFileSync('umount', ['-l', dir], { env, stdio: 'ignore' });
    } catch {
      // not mounted, or no more
    }
  };
  process.once('exit', unmount);
  const dispose = async () => {
    process.off('exit', unmount);
    unmount();
    await rm(base, { recursive: true, force: true });
  };
  try {
    await mkdir(dir);
    await writeFile(file, '');
    await truncate(file, mib * 1024 * 1024);
    await run([...MKFS[kind], file], { env });
    await run(['mount', '-o', 'loop', file, dir], { env });
    chmodSync(dir, 0o1777);
    chmodSync(base, 0o755);
  } catch (error) {
    await dispose();
    return error instanceof Error ? error.message : String(error);
  }
  return { dir, [Symbol.asyncDispose]: dispose };
};
