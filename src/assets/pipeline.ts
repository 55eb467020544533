/**
 * The executor of pipelines: the one way by which the bytes of an asset come to the disk. What has to be proven is known before
 * the first byte of the asset is asked for; bytes are hashed as they pass, through decompression, into a private folder.
 *
 * INVARIANTS: a file stays in the folder only if every stage of the pipeline has seen its stream to the end and was content.
 * Memory does not grow with the file.
 */
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { type LandedFile, proofNames, proves, type Stage } from '../api/pipeline.ts';
import { syncDir } from '../lib/files.ts';
import { plain } from '../lib/text.ts';
import { elfOfBzImage } from './bzimage.ts';
import { Restart } from './download.ts';
import { makeAgent, type Patience, shown } from './http.ts';
import { bounded, hashed, landFile } from './landing.ts';
import { member } from './member.ts';
import { checkStream } from './pgp.ts';
import type { Landed, PipelineInput } from './pipeline_input.ts';
import { type Evidence, gather } from './proof.ts';
import { openSource } from './source.ts';
import { fillStages } from './template.ts';
import { type Bytes, unpack } from './unpack.ts';

/** Of a compressed kernel, bytes. */
const MAX_BZIMAGE = 128 * 1024 * 1024;

/** Where a server cannot go on in the middle. */
const MAX_RESTARTS = 8;

/** One run of the stages. */
interface Run {
  input: PipelineInput;
  stages: readonly Stage[];
  evidence: Evidence;
  /** Proofs that have seen their stream to its end and were content, by the number of their stage. */
  passed: Set<number>;
  beside: Record<string, LandedFile>;
}

/** The one stage that holds its stream in memory, up to a bound. */
const unpackedKernel = async function* (from: Bytes): AsyncGenerator<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of bounded(from, MAX_BZIMAGE)) chunks.push(chunk);
  yield await elfOfBzImage(Buffer.concat(chunks));
};

/** What a stage does with the stream. */
const step = (run: Run, at: number, stage: Stage, from: Bytes, what: string): Bytes => {
  const { input, evidence } = run;
  const passed = () => void run.passed.add(at);
  switch (stage.stage) {
    case 'sha256':
      return hashed(from, evidence.sums.get(at) ?? '', what, passed);
    case 'pgp': {
      const signature = evidence.signatures.get(at);
      if (signature !== undefined) return checkStream(from, signature, input.keys, what, passed);
      passed(); // its document was checked before
      return from;
    }
    case 'xz':
    case 'gzip':
    case 'zstd':
      return bounded(unpack(stage.stage, from, input.signal), input.limits.output_bytes);
    case 'none':
      return from;
    case 'member':
      return member(stage, from, {
        dir: input.dir,
        beside: run.beside,
        collect: input.collect,
        signal: input.signal,
      });
    case 'bzimage':
      return unpackedKernel(from);
    default:
      throw new Fault('unsupported', `Cannot run the stage '${stage.stage}' here.`);
  }
};

const once = async (run: Run, agent: ReturnType<typeof makeAgent>, patience: Patience): Promise<Landed> => {
  const { input, stages } = run;
  const [first, ...rest] = stages;
  if (first === undefined) throw new Fault('invalid', 'Cannot run a pipeline without stages.');
  const work = join(input.dir, '.work');
  await mkdir(work, { mode: 0o700 });
  const source = await openSource(first, input, { work, agent, patience });
  let stream: Bytes = source.body;
  for (const [i, stage] of rest.entries()) stream = step(run, i + 1, stage, stream, source.what);
  // what the last stage has just hashed is not hashed again
  const known = run.evidence.sums.get(stages.length - 1);
  const file = await landFile(stream, join(input.dir, input.file), known);
  const missed = stages.findIndex((s, at) => (s.stage === 'sha256' || s.stage === 'pgp') && !run.passed.has(at));
  if (missed !== -1)
    throw new Fault('unverified', `Cannot trust ${source.what}: stage ${missed + 1} did not see all of it.`);
  await rm(work, { recursive: true });
  await syncDir(input.dir);
  return { file, beside: run.beside, source: source.what, proofs: proofNames(stages) };
};

const clear = async (dir: string): Promise<void> => {
  for (const name of await readdir(dir)) await rm(join(dir, name), { recursive: true, force: true });
};

const told = (error: unknown, input: PipelineInput): unknown => {
  if (input.signal.aborted) return input.signal.reason;
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG')
    return new Fault('no_room', `Cannot keep ${plain(input.file)}: the disk of ${input.dir} is full.`, {
      hint: 'free some space there',
      cause: error,
    });
  return error;
};

/** Runs a pipeline. Everything it lands is proven by its stages, or it throws and the folder is empty again. */
export const runPipeline = async (input: PipelineInput): Promise<Landed> => {
  if (!proves(input.pipeline) && !input.unverified)
    throw new Fault('unverified', 'Cannot use this source: nothing proves what comes from it.', {
      hint: 'Give a SHA-256, or let its provider say that it is unverified.',
    });
  if (!/^[A-Za-z0-9][\w.+-]*$/.test(input.file)) throw new Fault('invalid', 'Cannot land a file under that name.');
  const stages = fillStages(input.pipeline, input.vars);
  const agent = makeAgent();
  const patience: Patience = { failed: 0, last: '' };
  try {
    const evidence = await gather(stages, input, agent);
    for (let restarts = 0; ; restarts++) {
      try {
        return await once({ input, stages, evidence, passed: new Set(), beside: {} }, agent, patience);
      } catch (error) {
        await clear(input.dir);
        if (!(error instanceof Restart)) throw error;
        if (restarts === MAX_RESTARTS) throw new Fault('host', `Cannot fetch ${shown(error.url)}: ${error.message}.`);
        input.onLog(`${error.message}: beginning anew`);
      }
    }
  } catch (error) {
    throw told(error, input);
  } finally {
    agent.destroy();
  }
};
