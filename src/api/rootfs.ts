import { z } from 'zod';
import { Available, chosen, Default, FETCH_FAULTS, onDisk, Version, wanted } from './asset.ts';
import { id, Ref } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

const Distro = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,62}$/, 'a distribution has 1 to 63 of a-z 0-9 . _ -');

export const Rootfs = z.strictObject({
  id: id('rfs'),
  distro: z.string(),
  version: z.string(),
  ...onDisk,
});
export type Rootfs = z.infer<typeof Rootfs>;

const RootfsRef = z.strictObject({
  rootfs: Ref.describe('ID, distro:version such as debian:12, or the distro alone'),
  version: Version.optional().describe('where the distro alone was given'),
});

export const rootfsOps = {
  'rootfs.download': op({
    method: 'POST',
    path: '/v1/rootfs/download',
    summary: 'Download or make a root file system archive and verify it',
    input: z.strictObject({
      distro: Distro.optional().describe('such as alpine or debian; it names the provider'),
      ...wanted,
      packages: z
        .array(z.string().regex(/^[a-z0-9][a-z0-9+.-]{1,99}$/))
        .max(200)
        .default([])
        .describe('packages to add to the minimal system; debian only'),
    }),
    output: Job,
    errors: FETCH_FAULTS,
    args: ['distro', 'version'],
    tool: true,
  }),
  'rootfs.list': op({
    method: 'GET',
    path: '/v1/rootfs',
    summary: 'List the root file system archives on disk, newest first',
    input: z.strictObject({ distro: Distro.optional(), ...chosen }),
    output: z.array(Rootfs),
    columns: ['id', 'distro', 'version', 'arch', 'provider', 'proofs', 'size_bytes', 'is_default', 'created_at_ms'],
    args: ['distro'],
    tool: true,
  }),
  'rootfs.available': op({
    method: 'GET',
    path: '/v1/rootfs/available',
    summary: 'List the root file systems that a provider has, newest first',
    input: z.strictObject({ distro: Distro.optional(), ...chosen }),
    output: z.array(Available.extend({ distro: z.string() })),
    errors: FETCH_FAULTS,
    args: ['distro'],
    columns: ['distro', 'version', 'arch', 'provider', 'on_disk'],
    by_flag: { verb: 'list', flag: 'available' },
    tool: true,
  }),
  'rootfs.inspect': op({
    method: 'GET',
    path: '/v1/rootfs/:rootfs',
    summary: 'Show one root file system archive',
    input: RootfsRef,
    output: Rootfs,
    errors: ['not_found'],
    args: ['rootfs', 'version'],
    tool: true,
  }),
  'rootfs.verify': op({
    method: 'POST',
    path: '/v1/rootfs/:rootfs/verify',
    summary: 'Hash an archive again and compare with the record',
    input: RootfsRef,
    output: Rootfs,
    errors: ['not_found', 'unverified'],
    args: ['rootfs', 'version'],
    tool: true,
  }),
  'rootfs.set_default': op({
    method: 'POST',
    path: '/v1/rootfs/:rootfs/default',
    summary: 'Make an archive the one of builds that name none',
    input: RootfsRef.extend(Default),
    output: Rootfs,
    errors: ['not_found', 'unsupported'],
    args: ['rootfs', 'version'],
    tool: true,
  }),
  'rootfs.remove': op({
    method: 'DELETE',
    path: '/v1/rootfs/:rootfs',
    summary: 'Remove an archive; images that were built from it stay',
    input: RootfsRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['rootfs', 'version'],
    tool: true,
  }),
};
