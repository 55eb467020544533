/** Runs pipelines in folders of their own and looks at what is left. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Fault, type FaultCode } from '../../src/api/fault.ts';
import type { Pipeline } from '../../src/api/pipeline.ts';
import { runPipeline } from '../../src/assets/pipeline.ts';
import type { Landed, PipelineInput } from '../../src/assets/pipeline_input.ts';
import { removeTree } from '../../src/lib/files.ts';

export interface Lander extends AsyncDisposable {
  root: string;
  /** Lands `file`; gives its bytes too. */
  land(pipeline: Pipeline, more?: Partial<PipelineInput>): Promise<Landed & { dir: string; bytes: Buffer }>;
  /** Nothing lands, and the fault has that code and says so. */
  refused(code: FaultCode, says: RegExp, pipeline: Pipeline, more?: Partial<PipelineInput>): Promise<Fault>;
}

export const TIMES = { connect_ms: 10_000, headers_ms: 10_000, stall_ms: 10_000, retry_ms: 2 };

export const lander = async (): Promise<Lander> => {
  const root = await mkdtemp(join(tmpdir(), 'nexus-pipeline-'));
  const start = async (pipeline: Pipeline, more: Partial<PipelineInput>) => {
    const dir = more.dir ?? (await mkdtemp(join(root, 'run-')));
    const run = runPipeline({
      pipeline,
      vars: {},
      keys: [],
      unverified: false,
      dir,
      file: 'file',
      limits: { download_bytes: 64 * 1024 * 1024, output_bytes: 64 * 1024 * 1024 },
      times: TIMES,
      owner: root,
      signal: new AbortController().signal,
      onProgress: () => {},
      onLog: () => {},
      ...more,
    });
    return { dir, run };
  };
  return {
    root,
    land: async (pipeline, more = {}) => {
      const { dir, run } = await start(pipeline, more);
      const landed = await run;
      const beside = Object.keys(landed.beside);
      assert.deepEqual((await readdir(dir)).sort(), ['file', ...beside].sort());
      return { ...landed, dir, bytes: await readFile(join(dir, 'file')) };
    },
    refused: async (code, says, pipeline, more = {}) => {
      const { dir, run } = await start(pipeline, more);
      let error: unknown;
      await run.catch((reason: unknown) => {
        error = reason;
      });
      assert.ok(error instanceof Fault, `not refused: ${error instanceof Error ? error.stack : error}`);
      assert.equal(error.code, code, error.message);
      assert.match(error.message, says);
      assert.doesNotMatch(error.message, /[\p{Cc}]/u);
      assert.deepEqual(await readdir(dir), []);
      return error;
    },
    async [Symbol.asyncDispose]() {
      await removeTree(tmpdir(), root);
    },
  };
};
