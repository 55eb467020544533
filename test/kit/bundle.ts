/** The daemon and test files as plain JavaScript with all they import, for a machine on which each module costs seconds. */
import { readFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { build, type Plugin } from 'esbuild';

const REPO = join(import.meta.dirname, '../..');
// CommonJS packages in an ES module: their require() of Node's own modules must be a real one.
const REQUIRE = `import { createRequire as nexusRequire } from 'node:module';const require = nexusRequire(import.meta.url);`;

/** Each of our files takes itself to be where it is below `root`. */
const placePlugin = (root: string): Plugin => ({
  name: 'place',
  setup: made => {
    made.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const place = JSON.stringify(join(root, dirname(relative(REPO, path))));
      const text = await readFile(path, 'utf8');
      return { contents: text.replaceAll('import.meta.dirname', place), loader: 'ts' };
    });
  },
});

/** Writes `<out>/src/main.mjs` and `<out>/<file>.mjs` for each of `files` (without .ts); they will be run where `root` is the project. */
export const bundleTests = async (files: readonly string[], out: string, root: string): Promise<void> => {
  await build({
    entryPoints: ['src/main.ts', ...files],
    absWorkingDir: REPO,
    outbase: REPO,
    outdir: out,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    external: ['esbuild'], // never used inside
    splitting: true,
    plugins: [placePlugin(root)],
    platform: 'node',
    format: 'esm',
    minifyWhitespace: true,
    lineLimit: 120,
    keepNames: true,
    banner: { js: REQUIRE },
    logLevel: 'warning',
  });
};
