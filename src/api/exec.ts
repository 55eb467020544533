import { z } from 'zod';
import { Bytes, id, Ref, TimeMs, TimeoutMs } from './common.ts';
import { Nothing, op } from './op.ts';

const NO_NUL = /^[^\0]*$/;
const Text = (max: number) => z.string().max(max).regex(NO_NUL, 'may not contain a NUL character');

export const Signal = z.enum(['HUP', 'INT', 'QUIT', 'KILL', 'USR1', 'USR2', 'TERM', 'CONT', 'STOP', 'TSTP', 'WINCH']);
export type Signal = z.infer<typeof Signal>;

/** Of a terminal, in characters. */
export const Columns = z.int().min(1).max(65_535);

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
  tty: z
    .strictObject({ cols: Columns, rows: Columns })
    .optional()
    .describe('a terminal of this size in the place of the three standard streams; all output is stdout'),
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

/** A command of the guest, as its agent knows it: it runs, or ended a short time ago. */
export const ExecInfo = z.strictObject({
  exec: id('exec'),
  pid: z.int(),
  command: z.string().describe('the beginning of its command line'),
  running: z.boolean(),
  tty: z.boolean(),
  session: z.string().nullable().describe('its name as a terminal that several look at'),
  started_at_ms: TimeMs.describe('by the clock of the guest'),
  exit_code: z.int().nullable(),
  signal: z.string().nullable(),
});
export type ExecInfo = z.infer<typeof ExecInfo>;

const Offset = z.int().min(0).default(0);

export const execOps = {
  'exec.run': op({
    method: 'POST',
    path: '/v1/vms/:vm/execs',
    summary: 'Run a command in a VM and stream what it writes',
    input: z.strictObject({
      vm: Ref,
      ...ExecSpec.shape,
      idempotency_key: Text(256)
        .min(1)
        .optional()
        .describe('the same request with the same key is the same run: it is attached to, up to 10 min after its end'),
    }),
    output: ExecMessage,
    errors: ['invalid', 'not_found', 'exists', 'bad_state', 'busy', 'unsupported', 'guest', 'timeout'],
    args: ['vm', 'argv...'],
    stream: 'sse',
  }),
  'exec.list': op({
    method: 'GET',
    path: '/v1/vms/:vm/execs',
    summary: 'List the commands that run in a VM, or ended in the last minute',
    input: z.strictObject({ vm: Ref }),
    output: z.array(ExecInfo),
    errors: ['not_found', 'bad_state', 'guest', 'timeout'],
    args: ['vm'],
    columns: ['exec', 'pid', 'running', 'session', 'started_at_ms', 'command'],
  }),
  'exec.attach': op({
    method: 'GET',
    path: '/v1/vms/:vm/execs/:exec/output',
    summary: 'Stream what a command writes, from an offset on, whoever started it',
    input: z.strictObject({
      vm: Ref,
      exec: Ref,
      stdout: Offset.describe('bytes of it that are known already; what was dropped since is told as a gap'),
      stderr: Offset,
    }),
    output: ExecMessage,
    errors: ['invalid', 'not_found', 'bad_state', 'guest', 'timeout'],
    args: ['vm', 'exec'],
    stream: 'sse',
  }),
  'exec.resize': op({
    method: 'POST',
    path: '/v1/vms/:vm/execs/:exec/resize',
    summary: "Set the size of a command's terminal",
    input: z.strictObject({ vm: Ref, exec: Ref, cols: Columns, rows: Columns }),
    output: Nothing,
    errors: ['not_found', 'bad_state', 'unsupported', 'guest', 'timeout'],
    args: ['vm', 'exec', 'cols', 'rows'],
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
