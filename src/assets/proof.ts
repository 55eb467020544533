/** What proves an asset: signed texts and lists of checksums, fetched and checked before the first byte of the asset itself. */
import type { Agent } from 'node:https';
import { Fault } from '../api/fault.ts';
import type { Stage } from '../api/pipeline.ts';
import { plain } from '../lib/text.ts';
import { getBytes } from './http.ts';
import { checkClear, checkDetached } from './pgp.ts';
import type { PipelineInput } from './pipeline_input.ts';
import { listText, sumFor } from './sums.ts';

/** By the number of the stage. */
export interface Evidence {
  /** The SHA-256 that has to come out, lower case. */
  sums: Map<number, string>;
  /** Detached signatures of the stream itself. */
  signatures: Map<number, Buffer>;
}

const MAX_LIST = 4 * 1024 * 1024;
const MAX_SIGNATURE = 256 * 1024;

type Fetch = (url: string, max_bytes: number) => Promise<Buffer>;

const fetcher =
  (input: PipelineInput, agent: Agent): Fetch =>
  async (url, max_bytes) => {
    const { signal, onLog, times, token } = input;
    const { bytes, headers } = await getBytes(url, { signal, onLog, agent, max_bytes, token, ...(times && { times }) });
    if (/^(text\/html|application\/xhtml)/i.test(headers['content-type'] ?? ''))
      throw new Fault('unverified', `Cannot use ${plain(url)}: a web page came instead of a list.`);
    return bytes;
  };

/** The text that a pgp stage vouches for. */
const signedText = async (
  stage: { document: string; signature?: string | undefined },
  input: PipelineInput,
  get: Fetch,
) => {
  const { document, signature } = stage;
  const bytes = await get(document, MAX_LIST);
  if (signature === undefined) return checkClear(listText(bytes, document), input.keys, document);
  await checkDetached(bytes, await get(signature, MAX_SIGNATURE), input.keys, document);
  return listText(bytes, document);
};

const hashOf = (text: string): string => {
  if (/^[0-9a-f]{64}$/i.test(text)) return text.toLowerCase();
  throw new Fault('unverified', `Cannot compare with '${plain(text).slice(0, 100)}': it is no SHA-256.`);
};

/** Fetches and checks all that the proofs of a pipeline need. */
export const gather = async (stages: readonly Stage[], input: PipelineInput, agent: Agent): Promise<Evidence> => {
  const get = fetcher(input, agent);
  const evidence: Evidence = { sums: new Map(), signatures: new Map() };
  const texts = new Map<string, { text: string; signed: boolean }>();
  if (stages.some(s => s.stage === 'pgp' || (s.stage === 'sha256' && 'url' in s.expect)))
    input.onProgress({ stage: 'checksums', done: 0, total: 1, unit: 'steps' });
  for (const [at, stage] of stages.entries())
    if (stage.stage === 'pgp') {
      const { document, signature } = stage;
      if (document !== undefined)
        texts.set(document, { text: await signedText({ document, signature }, input, get), signed: true });
      else if (signature !== undefined) evidence.signatures.set(at, await get(signature, MAX_SIGNATURE));
    }
  for (const [at, stage] of stages.entries()) {
    if (stage.stage !== 'sha256') continue;
    const { expect } = stage;
    if ('hash' in expect) {
      evidence.sums.set(at, hashOf(expect.hash));
      continue;
    }
    const { url, name } = expect;
    const list = texts.get(url) ?? { text: listText(await get(url, MAX_LIST), url), signed: false };
    texts.set(url, list);
    evidence.sums.set(at, sumFor(list.text, name, url, list));
  }
  return evidence;
};
