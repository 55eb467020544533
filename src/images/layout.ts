/** The shape of the file system: size, inodes, features, identity. All of it follows from the inputs. */
import { createHash } from 'node:crypto';
import { Fault } from '../api/fault.ts';
import { formatBytes } from '../lib/size.ts';

const BLOCK = 4096;
const MIB = 1024 * 1024;
/** Blocks a group holds: the bits of one bitmap block. */
const GROUP_BLOCKS = 8 * BLOCK;
/** Inodes a group: one for 8 KiB, so that a disk that grows has room for many small files. */
const GROUP_INODES = 16_384;
const INODE_BYTES = 256;
/** The resize inode reserves descriptors up to this size: growing beyond it needs another layout. */
const GROW_BYTES = 1024 ** 4;
/** Below it the journal would have 4 MiB, little for a disk that grows. */
const MIN_BYTES = 128 * MIB;

/** Features are named, not taken from the machine's mke2fs.conf; none that a kernel of 5.10 could not mount. */
export const MKE2FS_CONF = `[defaults]
  base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
  default_mntopts = acl,user_xattr
  enable_periodic_fsck = 0
  blocksize = ${BLOCK}
  inode_size = ${INODE_BYTES}
[fs_types]
  ext4 = {
    features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
  }
${['floppy', 'small', 'default', 'big', 'huge'].map(type => `  ${type} = {\n    inode_ratio = 16384\n  }\n`).join('')}`;

export interface Layout {
  size_bytes: number;
  inodes: number;
}

/** libext2fs's own table: blocks of the journal by blocks of the file system. */
const journalBlocks = (blocks: number): number => {
  const table: [number, number][] = [
    [32_768, 1024],
    [262_144, 4096],
    [524_288, 8192],
    [4_194_304, 16_384],
    [8_388_608, 32_768],
    [16_777_216, 65_536],
    [33_554_432, 131_072],
  ];
  return table.find(([below]) => blocks < below)?.[1] ?? 262_144;
};

const inodesOf = (size_bytes: number, entries: number): number => {
  const groups = Math.ceil(size_bytes / BLOCK / GROUP_BLOCKS);
  return groups * Math.max(GROUP_INODES, Math.ceil((entries * 1.25 + 64) / groups / 16) * 16);
};

/** Blocks that hold no content: inode tables, bitmaps, descriptors and their reserve in each group (an upper bound), journal. */
const overhead = (size_bytes: number, entries: number): number => {
  const blocks = Math.ceil(size_bytes / BLOCK);
  const groups = Math.ceil(blocks / GROUP_BLOCKS);
  const tables = Math.ceil((inodesOf(size_bytes, entries) * INODE_BYTES) / BLOCK);
  const backups = Math.min(groups, 2 + 3 * Math.ceil(Math.log2(groups + 1)));
  const descriptors = Math.ceil(((Math.max(GROW_BYTES, size_bytes) / BLOCK / GROUP_BLOCKS) * 64) / BLOCK);
  return tables + 2 * groups + backups * (descriptors + 2) + journalBlocks(blocks) + 64;
};

/** Smallest size, in whole MiB, whose overhead leaves room for `content` blocks. */
const fit = (content: number, entries: number): number => {
  let size = 16 * MIB;
  for (;;) {
    const need = Math.ceil(((content + overhead(size, entries)) * BLOCK) / MIB) * MIB;
    if (need <= size) return size;
    size = need;
  }
};

/** Sizes a file system for its content, or checks the size that was asked for. */
export const planLayout = (blocks: number, entries: number, wanted?: number): Layout => {
  if (wanted === undefined) {
    const size_bytes = Math.max(MIN_BYTES, fit(Math.ceil(blocks * 1.2) + 4096, entries));
    return { size_bytes, inodes: inodesOf(size_bytes, entries) };
  }
  const needed = fit(Math.ceil(blocks * 1.02), entries);
  const size_bytes = Math.floor(wanted / BLOCK) * BLOCK;
  if (size_bytes < needed)
    throw new Fault(
      'invalid',
      `Cannot build the image: its content needs ${formatBytes(needed)}, the size is ${formatBytes(wanted)}.`,
      {
        hint: `--size-bytes ${needed}`,
      },
    );
  return { size_bytes, inodes: inodesOf(size_bytes, entries) };
};

const uuid = (seed: string): string => {
  const hex = createHash('sha256').update(seed).digest('hex');
  // Version 8 (RFC 9562): the bits are ours.
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
};

/** Arguments of mke2fs. `identity` is a hash of all inputs; `source` is `-` or a directory. */
export const mke2fsArgs = (layout: Layout, identity: string, source: string, out: string): string[] => {
  const extended = [
    `hash_seed=${uuid(`hash ${identity}`)}`,
    // The file is new and sparse: its inode tables are zero already, and are marked so. The first boot has nothing to do.
    'lazy_itable_init=0',
    'lazy_journal_init=1',
    'root_owner=0:0',
    ...(layout.size_bytes < GROW_BYTES ? [`resize=${GROW_BYTES / BLOCK}`] : []),
  ];
  return [
    ...['-q', '-F', '-t', 'ext4', '-o', 'Linux', '-b', String(BLOCK), '-m', '0', '-N', String(layout.inodes)],
    ...['-L', 'nexus', '-U', uuid(identity), '-E', extended.join(','), '-d', source],
    ...[out, String(layout.size_bytes / BLOCK)],
  ];
};
