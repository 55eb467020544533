/** One pipeline in a process of its own: `node bench/land.ts <url> <packed sha256> <sha256> <dir>`; prints how many ms it took. */
import process from 'node:process';
import { runPipeline } from '../src/assets/pipeline.ts';

const [url = '', packed = '', plain = '', dir = ''] = process.argv.slice(2);
const from = performance.now();
await runPipeline({
  pipeline: [
    { stage: 'http', url },
    { stage: 'sha256', expect: { hash: packed } },
    { stage: 'xz' },
    { stage: 'sha256', expect: { hash: plain } },
  ],
  vars: {},
  keys: [],
  unverified: false,
  dir,
  file: 'file',
  limits: { download_bytes: 2 ** 32, output_bytes: 2 ** 32 },
  owner: dir,
  signal: new AbortController().signal,
  onProgress: () => {},
  onLog: console.error,
});
console.log(performance.now() - from);
