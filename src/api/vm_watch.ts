/** How a VM is watched. */
import { z } from 'zod';
import { Ref } from './common.ts';
import { op } from './op.ts';

export const VmLogMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('line'), line: z.string().describe('control characters stripped') }),
  z.strictObject({ type: z.literal('gap'), detail: z.string().describe('what was lost and when') }),
  z.strictObject({ type: z.literal('end') }),
]);
export type VmLogMessage = z.infer<typeof VmLogMessage>;

export const vmWatchOps = {
  'vm.logs': op({
    method: 'GET',
    path: '/v1/vms/:vm/logs',
    summary: 'Show the console of a VM',
    input: z.strictObject({
      vm: Ref,
      follow: z.boolean().default(false).describe('go on, also over restarts, until the VM is down for good'),
      tail: z
        .int()
        .min(0)
        .max(100_000)
        .optional()
        .describe('how many past lines (default: 200, or all that since and boot leave)'),
      since_ms: z
        .int()
        .min(0)
        .max(366 * 24 * 3600 * 1000)
        .optional()
        .describe('only what was written so long ago or later, to about a second'),
      boot: z
        .int()
        .min(-1000)
        .max(0)
        .optional()
        .describe('0: the newest boot, -1: the one before, …; with follow: that boot and all that came after'),
    }),
    output: VmLogMessage,
    errors: ['not_found'],
    args: ['vm'],
    stream: 'sse',
  }),
};
