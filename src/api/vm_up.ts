/** From nothing to a VM that runs, in one operation. */
import { z } from 'zod';
import { Bytes, Name, TimeoutMs } from './common.ts';
import { Job } from './job.ts';
import { op } from './op.ts';
import { chosen } from './vm.ts';

const Up = z.strictObject({
  rootfs: z
    .string()
    .max(128)
    .regex(/^[a-z0-9][a-z0-9._-]*(:[0-9A-Za-z][0-9A-Za-z.+~_-]*)?$/, 'it must be distro:version, or the distro alone')
    .describe('distro:version such as alpine:3.21'),
  name: Name.optional().describe('of the VM; default: made of the rootfs'),
});

export const UpStep = z.strictObject({
  step: z.int().min(1),
  what: z.enum(['kernel', 'rootfs', 'template', 'image', 'vm', 'start']),
  done: z.boolean(),
  detail: z.string().describe('what is there, or what will be done'),
  id: z.string().nullable(),
});
export type UpStep = z.infer<typeof UpStep>;

export const vmUpOps = {
  'vm.up': op({
    method: 'POST',
    path: '/v1/up',
    summary: 'Start a VM of a root file system: download, template, image, VM; what is there already is used',
    input: Up.extend({
      vcpus: chosen.vcpus.optional(),
      memory_mib: chosen.memory_mib.optional(),
      root_size_bytes: Bytes.min(16 * 1024 * 1024)
        .max(64 * 1024 ** 4)
        .optional(),
      timeout_ms: TimeoutMs.default(300_000).describe('how long its guest may take to answer'),
    }),
    output: Job,
    errors: ['invalid', 'not_found', 'exists', 'busy', 'bad_state'],
    tool: true,
  }),
  'vm.up_plan': op({
    method: 'GET',
    path: '/v1/up',
    summary: 'Print the steps, and what of them is done; nothing is changed',
    input: Up,
    output: z.array(UpStep),
    errors: ['invalid', 'not_found', 'exists'],
    columns: ['step', 'what', 'done', 'detail', 'id'],
    by_flag: { verb: 'up', flag: 'dry-run' },
    tool: true,
  }),
};
