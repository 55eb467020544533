/** Bundles the programs and the client into `<out>/main.mjs`, `<out>/client.mjs` and their chunks, with every dependency. */
import { join } from 'node:path';
import { build, type Metafile } from 'esbuild';
import { tablePlugin } from './table.ts';

const ROOT = join(import.meta.dirname, '..');

export const NODE_MAJOR = 26; // package.json: engines

// CommonJS packages in an ES module: their require() of Node's own modules must be a real one.
const REQUIRE = `import { createRequire as nexusRequire } from 'node:module';const require = nexusRequire(import.meta.url);`;

export const bundle = async (out: string): Promise<Metafile> => {
  const { metafile } = await build({
    entryPoints: { main: 'src/main.ts', client: 'src/client/nexus.ts' },
    absWorkingDir: ROOT,
    outdir: out,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    splitting: true, // nexusctl loads a tenth of what nexusd does
    plugins: [tablePlugin],
    platform: 'node',
    format: 'esm',
    target: `node${NODE_MAJOR}`,
    minifyWhitespace: true,
    minifySyntax: true,
    lineLimit: 120, // Node prints the line of an uncaught error
    keepNames: true, // error names are part of what a reader sees
    legalComments: 'none', // dist/LICENSES has them
    banner: { js: REQUIRE },
    metafile: true,
    logLevel: 'warning',
  });
  return metafile;
};
