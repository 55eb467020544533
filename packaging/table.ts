/** For the bundle: src/api/table.ts as the data it evaluates to, so that nexusctl loads neither zod nor the schemas. */
import type { Plugin } from 'esbuild';
import { TABLE } from '../src/api/table.ts';

export const tablePlugin: Plugin = {
  name: 'table',
  setup: build => {
    build.onLoad({ filter: /\/src\/api\/table\.ts$/ }, () => ({
      contents: `export const TABLE = ${JSON.stringify(TABLE)};`,
      loader: 'js',
    }));
  },
};
