/** Programs in the place of apt and mmdebstrap, and what they bring: a kernel and a root file system of a few kilobytes, of the right shape. */
import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { zstdCompressSync } from 'node:zlib';
import { NEEDED } from '../../src/assets/modules.ts';
import { archive } from './tar.ts';

const SOURCE = join(import.meta.dirname, '../standin/apt');
export const RELEASE = '6.12.99-cloud-amd64';

/** An ELF with a PVH note, of `size` bytes in all. */
export const makeElf = (size = 4096): Buffer<ArrayBuffer> => {
  const elf = Buffer.alloc(size);
  elf.writeUInt32BE(0x7f454c46, 0);
  elf[4] = 2;
  elf[5] = 1;
  elf.writeUInt16LE(62, 18);
  elf.writeBigUInt64LE(64n, 32);
  elf.writeUInt16LE(56, 54);
  elf.writeUInt16LE(1, 56);
  elf.writeUInt32LE(4, 64);
  elf.writeBigUInt64LE(256n, 72);
  elf.writeBigUInt64LE(24n, 96);
  elf.writeUInt32LE(4, 256);
  elf.writeUInt32LE(8, 260);
  elf.writeUInt32LE(18, 264);
  elf.write('Xen\0', 268, 'latin1');
  return elf;
};

/** A bzImage around a compressed payload that is `size` bytes long unpacked. */
export const makeBzImage = (payload: Buffer, size: number): Buffer => {
  const image = Buffer.alloc(2048 + payload.length + 4);
  image[0x1f1] = 1;
  image.writeUInt16LE(0xaa55, 0x1fe);
  image.write('HdrS', 0x202, 'latin1');
  image.writeUInt16LE(0x020f, 0x206);
  image.writeUInt32LE(1024, 0x248);
  image.writeUInt32LE(payload.length + 4, 0x24c);
  payload.copy(image, 2048);
  image.writeUInt32LE(size, 2048 + payload.length);
  return image;
};

/** ar(5), as a .deb is one. */
export const ar = (members: Record<string, Buffer>): Buffer => {
  const parts: Buffer[] = [Buffer.from('!<arch>\n')];
  for (const [name, data] of Object.entries(members)) {
    const fields = [name.padEnd(16), '0'.padEnd(12), '0'.padEnd(6), '0'.padEnd(6), '100644'.padEnd(8)];
    parts.push(Buffer.from(`${fields.join('')}${String(data.length).padEnd(10)}\`\n`), data);
    if (data.length % 2 === 1) parts.push(Buffer.from('\n'));
  }
  return Buffer.concat(parts);
};

const kernelDeb = (): Buffer => {
  const elf = makeElf();
  const builtin = [...NEEDED.keys()].map(name => `kernel/drivers/${name}.ko\n`).join('');
  const data = archive(
    { name: `./boot/vmlinuz-${RELEASE}`, data: makeBzImage(Buffer.from(zstdCompressSync(elf)), elf.length) },
    { name: `./lib/modules/${RELEASE}/modules.builtin`, data: builtin },
  );
  return ar({ 'debian-binary': Buffer.from('2.0\n'), 'control.tar': archive(), 'data.tar': data });
};

const rootfsTar = (): Buffer =>
  archive(
    { name: './', type: '5', mode: 0o755 },
    { name: './etc/', type: '5', mode: 0o755 },
    { name: './etc/os-release', data: 'PRETTY_NAME="Little Debian"\n' },
    { name: './usr/', type: '5', mode: 0o755 },
    { name: './usr/bin/', type: '5', mode: 0o755 },
    { name: './usr/bin/true', mode: 0o755, data: makeElf() },
  );

/** Puts the programs into the new folder `dir`, which goes to the front of PATH. */
export const makePackages = async (dir: string): Promise<void> => {
  await mkdir(dir, { mode: 0o755 });
  for (const name of ['apt-get', 'apt-cache', 'apt-config', 'mmdebstrap']) {
    await copyFile(join(SOURCE, name), join(dir, name));
    await chmod(join(dir, name), 0o755);
  }
  const deb = kernelDeb();
  const sha256 = createHash('sha256').update(deb).digest('hex');
  const record = `Package: linux-image-${RELEASE}\nVersion: 1\nSize: ${deb.length}\nSHA256: ${sha256}\n`;
  await writeFile(join(dir, 'kernel.deb'), deb, { mode: 0o644 });
  await writeFile(join(dir, 'record'), record, { mode: 0o644 });
  await writeFile(join(dir, 'rootfs.tar'), rootfsTar(), { mode: 0o644 });
};
