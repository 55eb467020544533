/** One build in a process of its own: `node bench/build.ts <archive> <out> <mke2fs>`; prints its time and peak memory. */
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { buildExt4 } from '../src/images/build.ts';
import { guestOverlays } from '../src/images/overlays.ts';

const [archive = '', out = '', mke2fs = ''] = process.argv.slice(2);
const label = { template: null, template_version: null, rootfs: null, rootfs_sha256: null, agent_version: '1' };
const agent = Buffer.alloc(6 * 1024 * 1024, 'agent');
const from = performance.now();
const { method } = await buildExt4({
  archive,
  out,
  defaults: (scan, facts) => guestOverlays(scan, facts, { name: 'bench', init: 'agent', agent, label }),
  tools: { mke2fs },
  signal: new AbortController().signal,
});
const ms = performance.now() - from;
if (method !== 'tar') throw new Error(`built by ${method}`);
const status = await readFile('/proc/self/status', 'utf8');
console.log(JSON.stringify({ ms, rss_mib: Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]) / 1024 }));
