/** The first stage of a pipeline: where its bytes come from. */

import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Agent } from 'node:https';
import { isAbsolute, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import type { Stage } from '../api/pipeline.ts';
import { formatBytes } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { candidate, downloadPackage, openApt, refreshLists } from './apt.ts';
import { makeDebianTar } from './debian-rootfs.ts';
import { download } from './download.ts';
import { httpsUrl, type Patience, shown } from './http.ts';
import { hashed } from './landing.ts';
import type { PipelineInput } from './pipeline_input.ts';
import type { Bytes } from './unpack.ts';

export interface Source {
  body: Bytes;
  /** For the record and the reader. */
  what: string;
}

/** At most so often a job is told of its progress, ms. */
const TELL_MS = 100;
const READ_BYTES = 256 * 1024;

/** Tells the bytes that have passed. */
const counted = async function* (
  from: Bytes,
  stage: string,
  total: number | undefined,
  input: PipelineInput,
): AsyncGenerator<Buffer> {
  let done = 0;
  let told = 0;
  const tell = () => input.onProgress({ stage, done, total: total ?? null, unit: 'bytes' });
  tell();
  for await (const chunk of from) {
    done += chunk.length;
    yield chunk;
    if (performance.now() - told < TELL_MS) continue;
    told = performance.now();
    tell();
  }
  tell();
};

const http = async (text: string, input: PipelineInput, agent: Agent, patience: Patience): Promise<Source> => {
  const url = httpsUrl(text);
  const { total, body } = await download(text, {
    signal: input.signal,
    onLog: input.onLog,
    agent,
    patience,
    max_bytes: input.limits.download_bytes,
    token: input.token,
    ...(input.times && { times: input.times }),
  });
  if (total !== undefined) await input.onLength?.(total);
  return { body: counted(body, 'download', total, input), what: shown(url) };
};

/** Reads a regular file; whatever else has that name (a pipe would never open) is refused. */
const readFile = async function* (
  path: string,
  stage: string,
  max: number,
  input: PipelineInput,
): AsyncGenerator<Buffer> {
  const bad = (why: string, code: 'not_found' | 'invalid' = 'invalid') =>
    new Fault(code, `Cannot use ${plain(path)}: ${why}.`);
  if (!isAbsolute(path)) throw bad('the path is not absolute');
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch((error: unknown) => {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    throw code === 'ENOENT' ? bad('there is no such file', 'not_found') : bad(`it cannot be opened (${code})`);
  });
  const found = await file.stat();
  if (!found.isFile()) throw bad('it is not a regular file');
  if (found.size > max) throw bad(`it is larger than ${formatBytes(max)}`);
  const { signal } = input;
  yield* counted(
    file.createReadStream({ highWaterMark: READ_BYTES, autoClose: false, signal }),
    stage,
    found.size,
    input,
  );
};

/** The .deb of a package, as apt's signed index has it. Works in `work`, where it leaves it. */
const aptPackage = async (name: string, input: PipelineInput, work: string): Promise<Source> => {
  const { signal, onLog, onProgress } = input;
  for (let apt = input.apt ?? (await openApt(work, signal, onLog)); ; apt = await refreshLists(apt)) {
    const pkg = await candidate(apt, name);
    const onBytes = (done: number, total: number) => onProgress({ stage: 'download', done, total, unit: 'bytes' });
    const path = pkg && (await downloadPackage(apt, pkg, done => onBytes(done, pkg.size_bytes)));
    if (pkg !== undefined && path !== undefined) {
      onLog(`${pkg.name} ${pkg.version}`);
      const what = `${pkg.name} ${pkg.version}`;
      return { body: hashed(readFile(path, 'unpack', input.limits.download_bytes, input), pkg.sha256, what), what };
    }
    if (input.apt !== undefined || apt.lists === 'private')
      throw new Fault('not_found', `Cannot find package '${plain(name)}': apt has no such package.`);
    onLog('The lists of the system do not have it; fetching lists of our own.');
  }
};

/** A minimal Debian of a suite, made of signed packages. */
const aptSuite = async (suite: string, input: PipelineInput, work: string): Promise<Source> => {
  const { packages = [], owner, signal, onProgress, onLog } = input;
  const { codename } = await makeDebianTar({
    version: suite,
    packages,
    dir: work,
    owner,
    signal,
    onProgress,
    onLog,
  });
  return {
    body: readFile(join(work, 'rootfs.tar'), 'land', input.limits.output_bytes, input),
    what: `debian ${codename}`,
  };
};

/** Opens the source that the first stage names. `work` is an empty folder that goes away. */
export const openSource = async (
  stage: Stage,
  input: PipelineInput,
  { work, agent, patience }: { work: string; agent: Agent; patience: Patience },
): Promise<Source> => {
  switch (stage.stage) {
    case 'apt':
      return stage.package === undefined
        ? aptSuite(stage.suite ?? '', input, work)
        : aptPackage(stage.package, input, work);
    case 'http':
      return http(stage.url, input, agent, patience);
    case 'file':
      return { body: readFile(stage.path, 'read', input.limits.download_bytes, input), what: stage.path };
    default:
      throw new Fault('unsupported', `Cannot begin a pipeline with the stage '${stage.stage}'.`);
  }
};
