/**
 * A distribution's bzImage to the ELF inside it. Facts: Linux' Documentation/arch/x86/boot.rst. The setup header says where
 * the compressed payload stands; its last four bytes are the decompressed length, little endian, and no part of the stream.
 */
import { promisify } from 'node:util';
import zlib from 'node:zlib';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { elfProblem, hasPvh } from './elf.ts';
import { LZ4_LEGACY, lz4Legacy } from './lz4.ts';

/** What a kernel may be decompressed, bytes: a bound for hostile lengths. Debian's are some 60 MiB. */
const MAX_KERNEL = 512 * 1024 * 1024;
/** Least version of the boot protocol that has payload_offset and payload_length. */
const PROTOCOL = 0x0208;

const gunzip = promisify(zlib.gunzip);
const unzstd = promisify(zlib.zstdDecompress);

const bad = (why: string): Fault => new Fault('unsupported', `Cannot unpack the kernel: ${why}.`);

/** The compressed payload, without its length, and that length. */
export const bzPayload = (image: Buffer): { payload: Buffer; size: number } => {
  if (image.length < 0x268 || image.readUInt16LE(0x1fe) !== 0xaa55 || image.toString('latin1', 0x202, 0x206) !== 'HdrS')
    throw bad('it is not a bzImage');
  const version = image.readUInt16LE(0x206);
  if (version < PROTOCOL) throw bad(`its boot protocol is ${version >> 8}.${version & 255}, older than 2.8`);
  const start = ((image[0x1f1] || 4) + 1) * 512 + image.readUInt32LE(0x248);
  const length = image.readUInt32LE(0x24c);
  if (length < 8 || start + length > image.length) throw bad('its payload lies beyond the end of the file');
  const size = image.readUInt32LE(start + length - 4);
  if (size === 0 || size > MAX_KERNEL) throw bad(`its payload claims to be ${size} bytes long`);
  return { payload: image.subarray(start, start + length - 4), size };
};

const decompress = async (payload: Buffer, size: number): Promise<Buffer> => {
  const magic = payload.readUInt32LE(0);
  if (magic === 0xfd2fb528) return unzstd(payload, { maxOutputLength: size });
  if (magic === LZ4_LEGACY) return lz4Legacy(payload, size);
  if ((magic & 0xffff) === 0x8b1f) return gunzip(payload, { maxOutputLength: size });
  throw bad(`its payload has an unknown compression (magic ${magic.toString(16)})`);
};

const checked = (elf: Buffer, arch: Arch): Buffer => {
  const problem = elfProblem(elf, arch);
  if (problem !== undefined) throw bad(problem);
  if (!hasPvh(elf)) throw new Fault('unsupported', 'Cannot use the kernel: it has no PVH entry (CONFIG_PVH).');
  return elf;
};

/** The ELF inside a bzImage, checked: whole, for x86_64, with a PVH entry. */
export const elfOfBzImage = async (image: Buffer): Promise<Buffer> => {
  const { payload, size } = bzPayload(image);
  try {
    const elf = await decompress(payload, size);
    if (elf.length !== size) throw bad(`its payload is ${elf.length} bytes long, not ${size}`);
    return checked(elf, 'x86_64');
  } catch (error) {
    if (error instanceof Fault) throw error;
    throw new Fault('unsupported', `Cannot unpack the kernel: ${error instanceof Error ? error.message : error}.`, {
      cause: error,
    });
  }
};
