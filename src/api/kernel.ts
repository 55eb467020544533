import { z } from 'zod';
import { Arch, Bytes, id, Ref, Sha256, TimeMs } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

export const Kernel = z.strictObject({
  id: id('krn'),
  version: z.string().describe('the kernel release, as uname -r prints it'),
  arch: Arch,
  provider: z.string(),
  package: z.string().describe('the package or file it came from, with its version'),
  sha256: Sha256.describe('of the ELF that is booted'),
  size_bytes: Bytes,
  modules_sha256: Sha256.describe('of the cpio archive of modules'),
  modules_size_bytes: Bytes,
  created_at_ms: TimeMs,
});
export type Kernel = z.infer<typeof Kernel>;

const KernelRef = z.strictObject({ kernel: Ref.describe('ID or version') });

export const kernelOps = {
  'kernel.download': op({
    method: 'POST',
    path: '/v1/kernels/download',
    summary: 'Download a kernel and unpack it to what a microVM boots',
    input: z.strictObject({
      version: z
        .string()
        .min(1)
        .max(128)
        .optional()
        .describe('a release or a series such as 6.12 or 6.1; default: the newest the package archive has'),
      provider: z.enum(['debian']).default('debian'),
    }),
    output: Job,
    errors: ['not_found', 'unverified', 'no_room', 'host'],
    args: ['version'],
    tool: true,
  }),
  'kernel.list': op({
    method: 'GET',
    path: '/v1/kernels',
    summary: 'List the kernels on disk, newest first',
    input: z.strictObject({}),
    output: z.array(Kernel),
    columns: ['id', 'version', 'arch', 'provider', 'size_bytes', 'created_at_ms'],
    tool: true,
  }),
  'kernel.get': op({
    method: 'GET',
    path: '/v1/kernels/:kernel',
    summary: 'Show one kernel',
    input: KernelRef,
    output: Kernel,
    errors: ['not_found'],
    args: ['kernel'],
    tool: true,
  }),
  'kernel.verify': op({
    method: 'POST',
    path: '/v1/kernels/:kernel/verify',
    summary: 'Hash the files of a kernel again and compare with the record',
    input: KernelRef,
    output: Kernel,
    errors: ['not_found', 'unverified'],
    args: ['kernel'],
    tool: true,
  }),
  'kernel.remove': op({
    method: 'DELETE',
    path: '/v1/kernels/:kernel',
    summary: 'Remove a kernel that no VM uses',
    input: KernelRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['kernel'],
    tool: true,
  }),
};
