/** The little of ELF (elf(5), 64-bit little endian) that a kernel and its modules are asked for. Every bound is checked. */

const PT_NOTE = 4;
const MACHINES = { x86_64: 62, aarch64: 183 } as const;
/** XEN_ELFNOTE_PHYS32_ENTRY of Linux' include/xen/interface/elfnote.h: the entry point of PVH boot. */
const PVH_ENTRY = 18;

/** A number of 64 bits that is an offset or a size inside `buffer`. */
const inside = (buffer: Buffer, at: number): number => {
  if (at + 8 > buffer.length) throw new RangeError('an ELF table is cut short');
  const value = buffer.readBigUInt64LE(at);
  if (value > BigInt(buffer.length)) throw new RangeError('an ELF offset lies beyond the end');
  return Number(value);
};

/** Why this is no ELF of that machine, or undefined if it is one. */
export const elfProblem = (elf: Buffer, arch: keyof typeof MACHINES): string | undefined => {
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46) return 'it is not an ELF file';
  if (elf[4] !== 2 || elf[5] !== 1) return 'it is not a 64-bit little-endian ELF file';
  if (elf.readUInt16LE(18) !== MACHINES[arch]) return `it is not for ${arch}`;
  return undefined;
};

const table = (elf: Buffer, offset: number, entry: number, count: number, least: number): Buffer[] => {
  if (entry < least || offset + entry * count > elf.length) throw new RangeError('an ELF table lies beyond the end');
  return Array.from({ length: count }, (_, i) => elf.subarray(offset + i * entry, offset + (i + 1) * entry));
};

const part = (elf: Buffer, offset: bigint, size: bigint): Buffer => {
  if (offset + size > BigInt(elf.length)) throw new RangeError('a part of the ELF file lies beyond the end');
  return elf.subarray(Number(offset), Number(offset + size));
};

const hasNote = (notes: Buffer, name: string, type: number): boolean => {
  const pad = (n: number) => Math.ceil(n / 4) * 4;
  for (let at = 0; at + 12 <= notes.length; ) {
    const [namesz, descsz] = [notes.readUInt32LE(at), notes.readUInt32LE(at + 4)];
    const found = notes.toString('latin1', at + 12, Math.min(notes.length, at + 12 + namesz));
    if (notes.readUInt32LE(at + 8) === type && found === `${name}\0`) return true;
    at += 12 + pad(namesz) + pad(descsz);
  }
  return false;
};

/** True if the kernel has the note that names its PVH entry: what Firecracker and QEMU's microvm boot. */
export const hasPvh = (elf: Buffer): boolean =>
  table(elf, inside(elf, 32), elf.readUInt16LE(54), elf.readUInt16LE(56), 56)
    .filter(ph => ph.readUInt32LE(0) === PT_NOTE)
    .some(ph => hasNote(part(elf, ph.readBigUInt64LE(8), ph.readBigUInt64LE(32)), 'Xen', PVH_ENTRY));

/** The content of the section of that name, or undefined. */
export const elfSection = (elf: Buffer, name: string): Buffer | undefined => {
  const sections = table(elf, inside(elf, 40), elf.readUInt16LE(58), elf.readUInt16LE(60), 64);
  const content = (s: Buffer) => part(elf, s.readBigUInt64LE(24), s.readBigUInt64LE(32));
  const strings = sections[elf.readUInt16LE(62)];
  if (strings === undefined) throw new RangeError('the ELF file has no section names');
  const names = content(strings);
  const found = sections.find(s => names.indexOf(`${name}\0`, s.readUInt32LE(0), 'latin1') === s.readUInt32LE(0));
  return found && content(found);
};
