import { z } from 'zod';
import { Bytes, id, Ref, TimeoutMs } from './common.ts';
import { Nothing, op } from './op.ts';

const NO_NUL = /^[^\0]*$/;
const Text = (max: number) => z.string().max(max).regex(NO_NUL, 'may not contain a NUL character');

export const Signal = z.enum(['HUP', 'INT', 'QUIT', 'KILL', 'USR1', 'USR2', 'TERM', 'CONT', 'STOP', 'TSTP', 'WINCH']);
export type Signal = z.infer<typeof Signal>;

export const ExecSpec = z.strictObject({
  argv: z.array(Text(131_072)).min(1).max(4096).describe('the program and its arguments; no shell in between'),
  cwd: Text(4096).optional().describe("default: the user's home directory"),
  env: z
    .record(z.string().regex(/^[^\0=]+$/), Text(131_072))
    .default({})
    .describe("added to a login shell's environment"),
  user: Text(256).optional().describe('name or numeric ID; default: root'),
  timeout_ms: TimeoutMs.optional().describe('then the process group is killed and the exit says timed_out'),
  stdin: z.enum(['none', 'open']).default('none').describe('none: /dev/null; open: fed by exec.stdin'),
  on_disconnect: z
    .enum(['keep', 'kill'])
    .default('keep')
    .describe('kill: ends the command 10 s after its last client went away'),
});
export type ExecSpec = z.infer<typeof ExecSpec>;

export const ExecExit = z.strictObject({
  type: z.literal('exit'),
  exit_code: z.int().nullable(),
  signal: z.string().nullable().describe('without SIG: KILL, SEGV'),
  timed_out: z.boolean(),
  duration_ms: z.number().min(0).describe('measured in the guest, from fork to the end of the wait'),
});
export type ExecExit = z.infer<typeof ExecExit>;

export const ExecMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('started'), exec: id('exec'), pid: z.int() }),
  z.strictObject({ type: z.literal('stdout'), data: z.base64() }),
  z.strictObject({ type: z.literal('stderr'), data: z.base64() }),
  z.strictObject({ type: z.literal('gap'), channel: z.enum(['stdout', 'stderr']), bytes: Bytes }),
  ExecExit,
]);
export type ExecMessage = z.infer<typeof ExecMessage>;

/**
 * Why a command could not be started: the `reason` of its fault. `no_program` is `not_found`, the others are `invalid`.
 * `nexusctl exec` makes exit code 127 of the first and 126 of the others.
 */
export const EXEC_REASONS = ['no_program', 'no_permission', 'no_cwd', 'no_user', 'too_big', 'spawn'] as const;

export const execOps = {
  'exec.run': op({
    method: 'POST',
    path: '/v1/vms/:vm/execs',
    summary: 'Run a command in a VM and stream what it writes',
    input: z.strictObject({ vm: Ref, ...ExecSpec.shape }),
    output: ExecMessage,
    errors: ['invalid', 'not_found', 'bad_state', 'guest', 'timeout'],
    args: ['vm', 'argv...'],
    stream: 'sse',
  }),
  'exec.stdin': op({
    method: 'POST',
    path: '/v1/vms/:vm/execs/:exec/stdin',
    summary: 'Feed the standard input of a running command; the end of the body is its end of file',
    input: z.strictObject({ vm: Ref, exec: Ref }),
    output: z.strictObject({ bytes: Bytes.describe('bytes that were taken') }),
    errors: ['not_found', 'bad_state', 'guest'],
    args: ['vm', 'exec'],
    stream: 'upload',
  }),
  'exec.signal': op({
    method: 'POST',
    path: '/v1/vms/:vm/execs/:exec/signal',
    summary: "Send a signal to a command's process group",
    input: z.strictObject({ vm: Ref, exec: Ref, signal: Signal.default('TERM') }),
    output: Nothing,
    errors: ['not_found', 'guest'],
    args: ['vm', 'exec', 'signal'],
  }),
};
