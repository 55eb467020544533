/**
 * Another program in the place of the guest's agent, while it runs.
 *
 * INVARIANTS: nobody else uses the connection meanwhile, so that no request is cut off whose outcome would not be known. Whether it came about
 * is asked of the agent that answers afterwards, and of nobody else: an update that succeeds has no answer.
 */
import { readFile, stat } from 'node:fs/promises';
import { z } from 'zod';
import { Fault } from '../api/fault.ts';
import { pause, within } from '../lib/deadline.ts';
import { plain } from '../lib/text.ts';
import { parseBody } from './facts.ts';
import { bound, type Link, LostError, readBody, statusOf } from './link.ts';
import { refusal } from './refusal.ts';
import type { Requests } from './requests.ts';
import { sendChunk } from './send.ts';

export interface AgentProgram {
  readonly path: string;
  readonly sha256: string;
}

export const About = z.object({
  version: z.string().max(64).transform(plain),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});
export type About = z.infer<typeof About>;

export interface Updated {
  before: About;
  after: About;
}

const WHAT = "update the guest's agent";
/** As the agent has it. */
const PROGRAM_MOST = 32 * 1024 * 1024;
/** For the program to get there and to be looked at. */
const SEND_MS = 60_000;
/** From the end of the old one to the first answer of the new one. */
const BACK_MS = 60_000;
/** An agent that has lost its connection may be about to change all the same: it looks at the program for 20 s, and waits 2 s for others. */
const OLD_MS = 25_000;
const AGAIN_MS = 500;

const about = async (requests: Requests, signal: AbortSignal): Promise<About> => {
  const { body } = await requests.call({ what: WHAT, method: 'GET', path: '/v1/agent', again: true }, signal);
  return parseBody(About, body, "which program the guest's agent is");
};

/** Asks until the new one answers, or the old one for so long that it goes on. */
const aboutNew = async (requests: Requests, { sha256 }: AgentProgram, signal: AbortSignal): Promise<About> => {
  using limit = within("the guest's new agent", BACK_MS, signal);
  let old_ms: number | undefined;
  for (;;) {
    try {
      const found = await about(requests, limit.signal);
      old_ms ??= performance.now();
      if (found.sha256 === sha256 || performance.now() - old_ms > OLD_MS) return found;
      await pause(AGAIN_MS, limit.signal);
    } catch (error) {
      if (limit.signal.aborted || (error instanceof Fault && error.code !== 'timeout' && error.code !== 'guest'))
        throw error;
      await pause(AGAIN_MS, limit.signal);
    }
  }
};

const send = async (link: Link, { sha256 }: AgentProgram, bytes: Buffer, signal: AbortSignal): Promise<void> => {
  const headers = { ':method': 'POST', ':path': '/v1/update', 'content-length': bytes.length, 'nexus-sha256': sha256 };
  const stream = link.request(headers, false);
  bound(stream, signal);
  try {
    const answer = Promise.all([statusOf(stream), readBody(stream)]);
    answer.catch(() => {}); // awaited below
    if (await sendChunk(stream, bytes)) stream.end();
    const [head, body] = await answer;
    throw refusal(WHAT, head[':status'] ?? 0, body);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof LostError)) throw error; // else it may have worked
  } finally {
    if (!stream.closed) stream.close();
  }
};

const replace = async (requests: Requests, program: AgentProgram, signal: AbortSignal): Promise<void> => {
  const { size } = await stat(program.path);
  if (size > PROGRAM_MOST) throw new Fault('internal', `Cannot ${WHAT}: ${program.path} has ${size} bytes.`);
  const bytes = await readFile(program.path);
  await requests.told(WHAT, signal, async () => {
    using limit = within('the update', SEND_MS, requests.bounded(signal));
    using alone = await requests.alone(limit.signal);
    await send(await alone.link(limit.signal), program, bytes, limit.signal);
  });
};

/** Faults: `unsupported` for an agent that is older than this, `bad_state` for one that is writing what must not break off. */
export const updateAgent = async (requests: Requests, program: AgentProgram, signal: AbortSignal): Promise<Updated> => {
  const before = await about(requests, signal);
  if (before.sha256 === program.sha256) return { before, after: before };
  await replace(requests, program, signal);
  const after = await requests.told(WHAT, signal, () => aboutNew(requests, program, signal));
  if (after.sha256 === program.sha256) return { before, after };
  throw new Fault('guest', `Cannot ${WHAT}: the connection was lost, and the old one goes on.`);
};
