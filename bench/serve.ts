/** A mirror in a process of its own: `node bench/serve.ts <file>`; prints where it is, and serves until its input ends. */
import { once } from 'node:events';
import process from 'node:process';
import { Mirror } from '../test/kit/mirror.ts';

await using mirror = await new Mirror().open();
console.log(JSON.stringify({ url: mirror.put('/file.xz', { file: process.argv[2] ?? '' }), ca: mirror.ca }));
process.stdin.resume();
await once(process.stdin, 'end');
