/**
 * Bundles the programs: dist/main.mjs and its chunks (nexusd and nexusctl, with every dependency), their launchers, the client with its
 * types, the guest agent and the licences of what is inside. Made beside the old dist/, which it then replaces.
 */
import { spawnSync } from 'node:child_process';
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import process from 'node:process';
import type { Metafile } from 'esbuild';
import { bundle, NODE_MAJOR } from './bundle.ts';

const ROOT = join(import.meta.dirname, '..');
const DIST = join(ROOT, 'dist');

// The compile cache saves a third of the start. It lies in the user's own cache: Node's default, a well-known folder in /tmp, would
// let others put code before us.
const LAUNCHER = `#!/usr/bin/env node
import module from 'node:module';
import { homedir } from 'node:os';
import { join } from 'node:path';
if (Number.parseInt(process.versions.node, 10) < ${NODE_MAJOR}) {
  console.error('error: Nexus needs Node ${NODE_MAJOR} or newer; this is ' + process.version + '.');
  process.exit(8);
}
const cache = process.getuid() === 0 ? '/var/cache' : process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
module.enableCompileCache(process.env.NODE_COMPILE_CACHE || join(cache, 'nexus/compile'));
await import('./main.mjs');
`;

const types = (out: string): void => {
  const config = join(out, 'types.json');
  const args = ['--project', config, '--outDir', join(out, 'types')];
  const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
  const { status } = spawnSync(process.execPath, [tsc, ...args], { cwd: ROOT, stdio: 'inherit' });
  if (status !== 0) throw new Error('tsc could not write the types');
};

const typesConfig = (out: string): string => {
  const from = (path: string) => relative(out, join(ROOT, path));
  return JSON.stringify({
    extends: from('tsconfig.json'),
    compilerOptions: { noEmit: false, declaration: true, emitDeclarationOnly: true, rootDir: from('src') },
    files: [from('src/client/nexus.ts')],
    include: [],
  });
};

/** Folders of the packages whose code is in the bundle, e.g. node_modules/zod. */
const packagesIn = (metafile: Metafile): string[] => {
  const found = Object.keys(metafile.inputs).flatMap(path => /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path) ?? []);
  return [...new Set(found)].sort();
};

const licences = async (metafile: Metafile): Promise<string> => {
  const parts: string[] = [];
  for (const folder of packagesIn(metafile)) {
    const { name, version, license } = JSON.parse(await readFile(join(ROOT, folder, 'package.json'), 'utf8'));
    const file = (await readdir(join(ROOT, folder))).find(entry => /^licen[cs]e/i.test(entry));
    const text =
      file === undefined
        ? `(${license}; the package has no licence file)`
        : await readFile(join(ROOT, folder, file), 'utf8');
    parts.push(`${name} ${version} (${license})\n\n${text.trim()}\n`);
  }
  return parts.join(`\n${'-'.repeat(80)}\n\n`);
};

const agent = async (out: string): Promise<void> => {
  const from = process.env.NEXUS_AGENT_DIR;
  if (from !== undefined)
    await cp(from, join(out, 'agent'), { recursive: true, filter: path => !path.endsWith('harness') });
  else process.stderr.write('build: no guest agent in dist/ (NEXUS_AGENT_DIR is not set; ./nexus build sets it)\n');
};

await mkdir(join(ROOT, '.cache'), { recursive: true });
const out = await mkdtemp(join(ROOT, '.cache', 'dist-'));
try {
  const metafile = await bundle(out);
  await writeFile(join(out, 'types.json'), typesConfig(out));
  types(out);
  await rm(join(out, 'types.json'));
  for (const name of ['nexusctl', 'nexusd']) {
    await writeFile(join(out, name), LAUNCHER);
    await chmod(join(out, name), 0o755);
  }
  await writeFile(join(out, 'LICENSES'), await licences(metafile));
  await agent(out);
  await chmod(out, 0o755);
  await rm(DIST, { recursive: true, force: true });
  await rename(out, DIST);
} finally {
  await rm(out, { recursive: true, force: true });
}
for (const entry of await readdir(DIST)) process.stdout.write(`dist/${entry}\n`);
