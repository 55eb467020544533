/** What the guest says no with, as faults for the reader. */
import { z } from 'zod';
import { EXEC_REASONS } from '../api/exec.ts';
import { Fault, type FaultCode } from '../api/fault.ts';
import { plain } from '../lib/text.ts';

const Refusal = z.object({ code: z.string().max(64), detail: z.string().max(64 * 1024) });

const CODES: Record<string, FaultCode> = {
  invalid: 'invalid',
  not_found: 'not_found',
  exists: 'exists',
  conflict: 'bad_state',
  too_many: 'busy',
  internal: 'guest',
};

/** What an agent says of a request that it does not have. */
const UNKNOWN = 'the agent does not know this request';

/** Code and detail of a refusal. */
export const readRefusal = (body: Buffer): { code: string; detail: string } => {
  try {
    const parsed = Refusal.safeParse(JSON.parse(body.toString('utf8')));
    if (parsed.success) return { code: parsed.data.code, detail: plain(parsed.data.detail).slice(0, 300) };
  } catch {
    // not JSON: said below
  }
  return { code: 'internal', detail: 'the guest gave no reason' };
};

/** True for the answer of an agent that is older than the request. */
export const isUnknown = (status: number, body: Buffer): boolean =>
  status === 404 && readRefusal(body).detail === UNKNOWN;

/** The fault for an answer of 400 or more. `what` completes "Cannot …". */
export const refusal = (what: string, status: number, body: Buffer): Fault => {
  const { code, detail } = readRefusal(body);
  if (status < 400)
    return new Fault('guest', `Cannot ${what}: the guest answered with an unexpected status ${status}.`);
  if (isUnknown(status, body)) {
    return new Fault('unsupported', `Cannot ${what}: the guest's agent is older than this daemon.`, {
      hint: 'rebuild the image, or restart the VM',
    });
  }
  const known = Object.hasOwn(CODES, code) ? CODES[code] : undefined;
  return new Fault(known ?? 'guest', `Cannot ${what}: ${detail}.`.replace(/\.\.$/, '.'));
};

type Reason = (typeof EXEC_REASONS)[number];

const WHY: Record<Reason, string> = {
  no_program: 'the guest has no such program',
  no_permission: "the guest's user may not run it",
  no_cwd: 'the working directory does not exist in the guest, or the user may not enter it',
  no_user: 'the guest has no such user',
  too_big: 'its arguments and environment are longer than the guest takes',
  spawn: 'the guest could not start it',
};

const isReason = (code: string): code is Reason => EXEC_REASONS.some(reason => reason === code);

/** The fault for a command of which nobody can say how it ends. */
export const endUnknown = (id: string, why: string, cause?: Fault): Fault =>
  new Fault('guest', `The end of command ${id} is not known: ${why}.`, {
    hint: 'the command may still run, but nobody reads its output',
    cause,
  });

/** The fault for a command that the guest could not start (status 422); `reason` is the guest's own word. */
export const spawnRefusal = (spec: { id: string; argv: readonly string[] }, status: number, body: Buffer): Fault => {
  if (status === 412) return endUnknown(spec.id, "the guest's agent has died and was started again");
  const { code, detail } = readRefusal(body);
  const program = plain(spec.argv[0] ?? '').slice(0, 200);
  if (status !== 422 || !isReason(code)) return refusal(`run '${program}'`, status, body);
  // The agent's own sentence is finer: it names the directory or the file.
  const sentence = /^Cannot .+\.$/.test(detail) ? detail : `Cannot run '${program}': ${WHY[code]}.`;
  return new Fault(code === 'no_program' ? 'not_found' : 'invalid', sentence, { reason: code });
};
