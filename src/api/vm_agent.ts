/** The guest's agent: which program it is, and how it becomes another one. */
import { z } from 'zod';
import { Ref } from './common.ts';
import { op } from './op.ts';

export const GuestAgent = z.strictObject({
  version: z.string(),
  sha256: z.string().describe('of its program, in hexadecimal digits'),
});
export type GuestAgent = z.infer<typeof GuestAgent>;

export const vmAgentOps = {
  'vm.update_agent': op({
    method: 'POST',
    path: '/v1/vms/:vm/update-agent',
    summary: "Put this daemon's guest agent in the place of the one that runs; commands and terminals go on",
    input: z.strictObject({ vm: Ref }),
    output: z.strictObject({
      updated: z.boolean().describe('false: it was the same program already'),
      before: GuestAgent,
      after: GuestAgent,
    }),
    errors: ['not_found', 'bad_state', 'guest', 'unsupported', 'timeout', 'invalid', 'busy'],
    args: ['vm'],
    tool: true,
  }),
};
