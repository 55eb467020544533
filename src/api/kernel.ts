import { z } from 'zod';
import { Available, chosen, Default, FETCH_FAULTS, onDisk, wanted } from './asset.ts';
import { Bytes, id, Ref, Sha256 } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

export const Kernel = z.strictObject({
  id: id('krn'),
  version: z.string().describe('the kernel release, as uname -r prints it'),
  ...onDisk,
  modules_sha256: Sha256.nullable().describe('of the cpio archive of modules; null: it has none, all is built in'),
  modules_size_bytes: Bytes.nullable(),
});
export type Kernel = z.infer<typeof Kernel>;

const KernelRef = z.strictObject({ kernel: Ref.describe('ID or version') });

export const kernelOps = {
  'kernel.download': op({
    method: 'POST',
    path: '/v1/kernels/download',
    summary: 'Download a kernel and verify it',
    input: z.strictObject(wanted),
    output: Job,
    errors: FETCH_FAULTS,
    args: ['version'],
    tool: true,
  }),
  'kernel.list': op({
    method: 'GET',
    path: '/v1/kernels',
    summary: 'List the kernels on disk, newest first',
    input: z.strictObject(chosen),
    output: z.array(Kernel),
    columns: ['id', 'version', 'arch', 'provider', 'proofs', 'size_bytes', 'is_default', 'created_at_ms'],
    tool: true,
  }),
  'kernel.available': op({
    method: 'GET',
    path: '/v1/kernels/available',
    summary: 'List the kernels that a provider has, newest first',
    input: z.strictObject(chosen),
    output: z.array(Available),
    errors: FETCH_FAULTS,
    columns: ['version', 'arch', 'provider', 'on_disk'],
    by_flag: { verb: 'list', flag: 'available' },
    tool: true,
  }),
  'kernel.inspect': op({
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
  'kernel.set_default': op({
    method: 'POST',
    path: '/v1/kernels/:kernel/default',
    summary: 'Make a kernel the one of VMs that name none',
    input: KernelRef.extend(Default),
    output: Kernel,
    errors: ['not_found', 'unsupported'],
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
