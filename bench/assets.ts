/**
 * Downloads: `node bench/assets.ts [dir]` (needs curl, xz and 2 GiB in `dir`, default /var/tmp). One pipeline (HTTPS, sha256, xz,
 * sha256, disk) against the same in a shell, in turn, from one server; and its peak memory for files of 256 MiB and 1 GiB.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { sha256File } from '../src/lib/files.ts';
import { run } from '../src/lib/proc.ts';
import { testKernel } from '../test/kit/assets.ts';
import { machine, quantile, report } from './kit.ts';

const ROUNDS = 7;
const base = await mkdtemp(join(process.argv[2] ?? '/var/tmp', 'nexus-bench-'));

interface Made {
  packed: string;
  packed_sha256: string;
  sha256: string;
}

/** A file of so many MiB out of a real kernel, packed; only that is kept. */
const make = async (mib: number): Promise<Made> => {
  const kernel = await readFile((await testKernel('6.12')).vmlinux);
  const path = join(base, `${mib}`);
  const file = await open(path, 'w');
  for (let left = mib * 1024 * 1024; left > 0; left -= kernel.length) await file.write(kernel.subarray(0, left));
  await file.close();
  const sha256 = await sha256File(path);
  await run(['xz', '-1', '-T0', path], { timeout_ms: 600_000 });
  return { packed: `${path}.xz`, packed_sha256: await sha256File(`${path}.xz`), sha256 };
};

/** A server in a process of its own. */
const serve = async (path: string): Promise<{ url: string; ca: string; end: () => Promise<void> }> => {
  const argv = ['--no-warnings', join(import.meta.dirname, 'serve.ts'), path];
  const child: ChildProcess = spawn(process.execPath, argv, { stdio: ['pipe', 'pipe', 'inherit'] });
  if (child.stdout === null) throw new Error('no output');
  const [line] = await once(createInterface(child.stdout), 'line');
  const end = async () => {
    child.stdin?.end();
    await once(child, 'exit');
  };
  return { ...JSON.parse(String(line)), end };
};

const emptied = async (): Promise<string> => {
  const dir = join(base, 'out');
  await rm(dir, { recursive: true, force: true });
  await mkdir(dir);
  return dir;
};

const ours = async (url: string, ca: string, made: Made): Promise<{ ms: number; rss_mib: number }> => {
  const argv = [process.execPath, '--no-warnings', join(import.meta.dirname, 'land.ts'), url];
  const { stdout } = await run([...argv, made.packed_sha256, made.sha256, await emptied()], {
    env: { ...process.env, NODE_EXTRA_CA_CERTS: ca },
    timeout_ms: 600_000,
  });
  return JSON.parse(stdout);
};

const SHELL = `set -o pipefail
curl -sf --cacert "$2" "$1" | tee >(sha256sum >"$3/a") | xz -dc | tee "$3/file" | sha256sum >"$3/b"`;

const shell = async (url: string, ca: string): Promise<number> => {
  const dir = await emptied();
  const from = performance.now();
  await run(['bash', '-c', SHELL, 'bash', url, ca, dir], { timeout_ms: 600_000 });
  return performance.now() - from;
};

const speed = async (): Promise<number[]> => {
  const made = await make(200);
  const { url, ca, end } = await serve(made.packed);
  const ratios: number[] = [];
  for (let i = 0; i <= ROUNDS; i++) {
    const theirs = await shell(url, ca);
    const { ms } = await ours(url, ca, made);
    console.log(`     shell ${theirs.toFixed(0)} ms, ours ${ms.toFixed(0)} ms`);
    if (i > 0) ratios.push(ms / theirs); // the first one warms up
  }
  await end();
  return ratios;
};

const memory = async (mib: number): Promise<number> => {
  const made = await make(mib);
  const { url, ca, end } = await serve(made.packed);
  const peaks: number[] = [];
  for (let i = 0; i < 5; i++) peaks.push((await ours(url, ca, made)).rss_mib);
  await end();
  await rm(made.packed);
  console.log(`     peak at ${mib} MiB: ${peaks.map(p => p.toFixed(1)).join(', ')} MiB`);
  return quantile(peaks, 0.5);
};

try {
  console.log(`machine: ${machine()}`);
  const ratios = await speed();
  const more = (await memory(1024)) - (await memory(256));
  const what = 'HTTPS to synced file (ours) against HTTPS to file (curl, tee, xz, sha256sum), 200 MiB, in turn';
  const ok = [
    report({ name: 'download, ours against the shell', what, samples: ratios, unit: 'x', limit: 1.1 }),
    report({
      name: 'peak memory, 1 GiB against 256 MiB',
      what: 'difference of the medians of VmHWM of the process that runs the pipeline',
      samples: [more],
      unit: 'MiB',
      limit: 8,
    }),
  ];
  process.exitCode = ok.every(Boolean) ? 0 : 1;
} finally {
  await rm(base, { recursive: true, force: true });
}
