/** Is a landed file what its kind has to be? A hash proves whose it is, not that it is a kernel. */
import { chmod, open } from 'node:fs/promises';
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { hostArch } from '../lib/arch.ts';
import { RunError, run } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { elfProblem } from './elf.ts';

const VERSION_MS = 20_000;

/** The first `length` bytes, or what there is of them. */
const headOf = async (path: string, length: number): Promise<Buffer> => {
  const file = await open(path, 'r');
  try {
    const head = Buffer.alloc(length);
    const { bytesRead } = await file.read(head, 0, length, 0);
    return head.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
};

const refused = (what: string, problem: string): Fault =>
  new Fault('unsupported', `Cannot use this ${what}: ${problem}.`);

/** Linux' Documentation/arch/arm64/booting.rst: the magic number of an Image, at 56. */
const ARM64_IMAGE = 'ARM\x64';

/** x86_64 boots an ELF, aarch64 an Image. */
export const checkKernel = async (path: string, arch: Arch): Promise<void> => {
  const head = await headOf(path, 64);
  if (arch === 'aarch64') {
    if (head.toString('latin1', 56, 60) !== ARM64_IMAGE) throw refused('kernel', 'it is not an Image for aarch64');
    return;
  }
  const problem = elfProblem(head, arch);
  if (problem !== undefined) throw refused('kernel', problem);
};

/** A tar archive begins with a header whose sum is right (POSIX pax, "ustar Interchange Format"). */
export const checkArchive = async (path: string): Promise<void> => {
  const head = await headOf(path, 512);
  const said = Number.parseInt(head.toString('latin1', 148, 156).replace(/[\0 ]/g, ''), 8);
  let sum = 8 * 32; // its own field counts as spaces
  for (const [at, byte] of head.entries()) if (at < 148 || at >= 156) sum += byte;
  if (head.length < 512 || said !== sum) throw refused('root file system', 'it is not a tar archive');
};

/** An ELF for that processor, which on this one says that it is this version of Firecracker. Makes it executable. */
export const checkFirecracker = async (path: string, { version, arch }: { version: string; arch: Arch }) => {
  const problem = elfProblem(await headOf(path, 64), arch);
  if (problem !== undefined) throw refused('Firecracker', problem);
  await chmod(path, 0o755);
  if (arch !== hostArch()) return;
  const said = await run([path, '--version'], { timeout_ms: VERSION_MS, env: {} }).catch((error: unknown) => {
    if (error instanceof RunError) throw refused('Firecracker', `it does not run: ${plain(error.message)}`);
    throw error;
  });
  const found = /Firecracker v(\d+\.\d+\S*)/.exec(said.stdout)?.[1];
  if (found !== version)
    throw refused('Firecracker', `it says that its version is ${plain(found ?? 'none')}, not ${version}`);
};

/** A program that is not run here. */
export const checkProgram = async (path: string, arch: Arch, what: string): Promise<void> => {
  const problem = elfProblem(await headOf(path, 64), arch);
  if (problem !== undefined) throw refused(what, problem);
  await chmod(path, 0o755);
};
