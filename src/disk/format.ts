/** An empty file system for a data disk. */
import { Fault } from '../api/fault.ts';
import { RunError } from '../lib/proc.ts';
import { tool } from './ways.ts';

/** EXT2_LABEL_LEN. */
const MAX_LABEL = 16;

/**
 * Makes the file an ext4 of its own length. The file is new, so all of it is zeros: no inode table is written, and a disk of 1 TiB takes
 * 16 MiB. There is room for the descriptors of a thousand times the size (mke2fs' own default): it can grow while it is mounted.
 */
export const makeExt4 = async (path: string, label: string, signal: AbortSignal): Promise<void> => {
  const extended = 'lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0';
  const how = ['-q', '-F', '-t', 'ext4', '-o', 'Linux', '-b', '4096', '-m', '0', '-E', extended];
  try {
    const program = process.env.NEXUS_MKE2FS || 'mke2fs';
    await tool([program, ...how, '-L', label.slice(0, MAX_LABEL), path], signal);
  } catch (cause) {
    if (!(cause instanceof RunError) || cause.errno !== 'ENOENT') throw cause;
    throw new Fault('host', 'Cannot format a disk: mke2fs is not installed.', {
      hint: 'apt-get install e2fsprogs, or --format none',
      cause,
    });
  }
};
