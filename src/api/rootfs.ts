import { z } from 'zod';
import { Arch, Bytes, id, Ref, Sha256, TimeMs } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

export const Rootfs = z.strictObject({
  id: id('rfs'),
  distro: z.string(),
  version: z.string(),
  arch: Arch,
  provider: z.string(),
  sha256: Sha256.describe('of the tar archive'),
  size_bytes: Bytes,
  created_at_ms: TimeMs,
});
export type Rootfs = z.infer<typeof Rootfs>;

const RootfsRef = z.strictObject({ rootfs: Ref.describe('ID, or distro:version such as debian:12') });

export const rootfsOps = {
  'rootfs.download': op({
    method: 'POST',
    path: '/v1/rootfs/download',
    summary: "Make a root file system archive from a distribution's signed packages",
    input: z.strictObject({
      distro: z.enum(['debian']),
      version: z.string().regex(/^[a-z0-9.]{1,32}$/),
      packages: z
        .array(z.string().regex(/^[a-z0-9][a-z0-9+.-]{1,99}$/))
        .max(200)
        .default([])
        .describe('packages to add to the minimal system'),
    }),
    output: Job,
    errors: ['not_found', 'unverified', 'no_room', 'host'],
    args: ['distro', 'version'],
    tool: true,
  }),
  'rootfs.list': op({
    method: 'GET',
    path: '/v1/rootfs',
    summary: 'List the root file system archives on disk, newest first',
    input: z.strictObject({}),
    output: z.array(Rootfs),
    columns: ['id', 'distro', 'version', 'arch', 'size_bytes', 'created_at_ms'],
    tool: true,
  }),
  'rootfs.get': op({
    method: 'GET',
    path: '/v1/rootfs/:rootfs',
    summary: 'Show one root file system archive',
    input: RootfsRef,
    output: Rootfs,
    errors: ['not_found'],
    args: ['rootfs'],
    tool: true,
  }),
  'rootfs.verify': op({
    method: 'POST',
    path: '/v1/rootfs/:rootfs/verify',
    summary: 'Hash an archive again and compare with the record',
    input: RootfsRef,
    output: Rootfs,
    errors: ['not_found', 'unverified'],
    args: ['rootfs'],
    tool: true,
  }),
  'rootfs.remove': op({
    method: 'DELETE',
    path: '/v1/rootfs/:rootfs',
    summary: 'Remove an archive; images that were built from it stay',
    input: RootfsRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['rootfs'],
    tool: true,
  }),
};
