import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Pipeline } from '../src/api/pipeline.ts';
import { runPipeline } from '../src/assets/pipeline.ts';
import type { Landed, PipelineInput } from '../src/assets/pipeline_input.ts';
import { run } from '../src/lib/proc.ts';
import { type Mirror, openMirror } from './kit/mirror.ts';

let mirror: Mirror;
let root = '';
before(async () => {
  mirror = await openMirror();
  root = await mkdtemp(join(tmpdir(), 'nexus-pipeline-'));
});
after(async () => {
  await mirror[Symbol.asyncDispose]();
  await rm(root, { recursive: true, force: true });
});

const sha256 = (data: Buffer | string): string => createHash('sha256').update(data).digest('hex');
const packed = async (data: Buffer): Promise<Buffer> => {
  const path = join(root, `pack-${sha256(data).slice(0, 8)}`);
  await (await import('node:fs/promises')).writeFile(path, data);
  await run(['xz', '-f', '-k', path]);
  return readFile(`${path}.xz`);
};

/** Runs a pipeline in a new folder; the caller looks into it. */
const land = async (pipeline: Pipeline, more: Partial<PipelineInput> = {}): Promise<Landed & { dir: string }> => {
  const dir = await mkdtemp(join(root, 'run-'));
  const landed = await runPipeline({
    pipeline,
    vars: {},
    keys: [],
    unverified: false,
    dir,
    file: 'vmlinux',
    limits: { download_bytes: 1 << 30, output_bytes: 1 << 30 },
    times: { connect_ms: 5000, headers_ms: 5000, stall_ms: 5000, retry_ms: 5 },
    owner: dir,
    signal: new AbortController().signal,
    onProgress: () => {},
    onLog: () => {},
    ...more,
  });
  return { ...landed, dir };
};

test('two checksums around a decompression', async () => {
  const data = randomBytes(3_000_000);
  const xz = await packed(data);
  const url = mirror.store('/a/vmlinux.xz', xz);
  const sums = mirror.put('/a/SHA256SUMS', `${sha256(xz)}  vmlinux.xz\n${sha256(data)}  vmlinux\n`);
  const landed = await land(
    [
      { stage: 'http', url: '{base}/vmlinux.xz' },
      { stage: 'sha256', expect: { url: sums, name: 'vmlinux.xz' } },
      { stage: 'xz' },
      { stage: 'sha256', expect: { url: sums, name: 'vmlinux' } },
    ],
    { vars: { base: `${mirror.origin}/a` } },
  );
  assert.deepEqual(landed.file, { sha256: sha256(data), size_bytes: data.length });
  assert.equal(landed.source, url);
  assert.deepEqual(landed.proofs, ['sha256']);
  assert.deepEqual(await readdir(landed.dir), ['vmlinux']);
  assert.ok((await readFile(join(landed.dir, 'vmlinux'))).equals(data));
});

test('a connection that is cut is taken up again', async () => {
  const data = randomBytes(1_000_000);
  const url = mirror.store('/b/file', data);
  mirror.misbehave('/b/file', { cut: 300_000, times: 2 });
  await land([
    { stage: 'http', url },
    { stage: 'sha256', expect: { hash: sha256(data) } },
  ]);
  assert.deepEqual(
    mirror.seen.filter(s => s.host === 'storage' && s.url.includes('/b/')).map(s => s.headers.range),
    [undefined, 'bytes=300000-', 'bytes=600000-'],
  );
});
