/** Terminals in a VM, each with any number of viewers. */
import { z } from 'zod';
import { Bytes, id, Ref } from './common.ts';
import { Columns, ExecExit } from './exec.ts';
import { op } from './op.ts';

const SessionName = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'a session has 1 to 64 of A-Z a-z 0-9 _ -');

/** What is said beside the bytes that the terminal shows. */
export const TerminalMessage = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('opened'),
    exec: id('exec'),
    pid: z.int(),
    session: z.string().nullable(),
    made: z.boolean().describe('it was not there before'),
  }),
  z.strictObject({ type: z.literal('gap'), bytes: Bytes.describe('so many were dropped here') }),
  ExecExit,
]);
export type TerminalMessage = z.infer<typeof TerminalMessage>;

export const TerminalSay = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('resize'), cols: Columns, rows: Columns }),
]);
export type TerminalSay = z.infer<typeof TerminalSay>;

export const terminalOps = {
  'terminal.open': op({
    method: 'GET',
    path: '/v1/vms/:vm/terminal',
    summary: 'Attach to a terminal in a VM: its last lines, then what it shows; what comes in is typed',
    input: z.strictObject({
      vm: Ref,
      session: SessionName.optional().describe(
        'its name; a login shell is made where none runs under it (default: main)',
      ),
      exec: Ref.optional().describe('a command with a terminal, in the place of a session'),
      read_only: z.boolean().default(false).describe('only look'),
      user: z.string().min(1).max(256).optional().describe('whose shell is made; default: root'),
      cols: Columns.default(80),
      rows: Columns.default(24),
    }),
    output: TerminalMessage,
    input_message: TerminalSay,
    errors: ['invalid', 'not_found', 'bad_state', 'busy', 'unsupported', 'guest', 'timeout'],
    args: ['vm'],
    stream: 'ws',
  }),
};
