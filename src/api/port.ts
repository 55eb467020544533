/** Ports of a guest, reached without a network device. */
import { z } from 'zod';
import { Ref } from './common.ts';
import { op } from './op.ts';

/** The other side sends no more; it may take more all the same. */
const End = z.strictObject({ type: z.literal('end') });
export type PortMessage = z.infer<typeof End>;

export const portOps = {
  'port.open': op({
    method: 'GET',
    path: '/v1/vms/:vm/ports/:port',
    summary: 'Connect to a TCP port of a VM',
    input: z.strictObject({
      vm: Ref,
      port: z.int().min(1).max(65_535).describe('of the loopback in the guest'),
      host: z.enum(['127.0.0.1', '::1']).optional().describe('default: the first of both where something listens'),
    }),
    output: End,
    input_message: End,
    errors: ['invalid', 'not_found', 'bad_state', 'unsupported', 'guest', 'timeout'],
    args: ['vm', 'port'],
    stream: 'ws',
  }),
};
