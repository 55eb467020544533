/** The stand-in VMM where its own user can run it: a checkout in somebody's home may be closed to others. */
import { chmod, copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

const SOURCE = join(import.meta.dirname, '../standin');

export interface Standin extends AsyncDisposable {
  /** The program, called as QEMU is. */
  readonly program: string;
  /** A copy of `file` beside it, open to all. */
  share(file: string, name: string): Promise<string>;
}

export const openStandin = async (): Promise<Standin> => {
  const dir = await mkdtemp(join(tmpdir(), 'nxs-'));
  await chmod(dir, 0o755);
  const share = async (file: string, name: string): Promise<string> => {
    const copy = join(dir, name);
    await copyFile(file, copy);
    await chmod(copy, 0o755);
    return copy;
  };
  const script = await share(join(SOURCE, 'qemu.ts'), 'qemu.ts');
  await share(join(SOURCE, 'qemu_guest.ts'), 'qemu_guest.ts');
  await writeFile(join(dir, 'package.json'), '{"type":"module"}\n', { mode: 0o644 });
  const program = join(dir, 'qemu-system-standin');
  await writeFile(program, `#!/bin/sh\nexec ${process.execPath} ${script} "$@"\n`, { mode: 0o755 });
  return { program, share, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};
