import { z } from 'zod';
import { Available, chosen, Default, FETCH_FAULTS, onDisk, wanted } from './asset.ts';
import { Bytes, id, Ref, Sha256 } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

export const Firecracker = z.strictObject({
  id: id('fcr'),
  version: z.string(),
  ...onDisk,
  jailer_sha256: Sha256.nullable().describe('of its jailer; null: it came without one'),
  jailer_size_bytes: Bytes.nullable(),
});
export type Firecracker = z.infer<typeof Firecracker>;

const FirecrackerRef = z.strictObject({ firecracker: Ref.describe('ID or version') });

export const firecrackerOps = {
  'firecracker.download': op({
    method: 'POST',
    path: '/v1/firecrackers/download',
    summary: 'Download a release of Firecracker and verify it',
    input: z.strictObject(wanted),
    output: Job,
    errors: FETCH_FAULTS,
    args: ['version'],
    tool: true,
  }),
  'firecracker.list': op({
    method: 'GET',
    path: '/v1/firecrackers',
    summary: 'List the Firecrackers on disk, newest first',
    input: z.strictObject(chosen),
    output: z.array(Firecracker),
    columns: ['id', 'version', 'arch', 'provider', 'proofs', 'size_bytes', 'is_default', 'created_at_ms'],
    tool: true,
  }),
  'firecracker.available': op({
    method: 'GET',
    path: '/v1/firecrackers/available',
    summary: 'List the releases of Firecracker, newest first',
    input: z.strictObject(chosen),
    output: z.array(Available),
    errors: FETCH_FAULTS,
    columns: ['version', 'arch', 'provider', 'on_disk'],
    by_flag: { verb: 'list', flag: 'available' },
    tool: true,
  }),
  'firecracker.inspect': op({
    method: 'GET',
    path: '/v1/firecrackers/:firecracker',
    summary: 'Show one Firecracker',
    input: FirecrackerRef,
    output: Firecracker,
    errors: ['not_found'],
    args: ['firecracker'],
    tool: true,
  }),
  'firecracker.verify': op({
    method: 'POST',
    path: '/v1/firecrackers/:firecracker/verify',
    summary: 'Hash the programs of a Firecracker again and compare with the record',
    input: FirecrackerRef,
    output: Firecracker,
    errors: ['not_found', 'unverified'],
    args: ['firecracker'],
    tool: true,
  }),
  'firecracker.set_default': op({
    method: 'POST',
    path: '/v1/firecrackers/:firecracker/default',
    summary: 'Make a Firecracker the one that starts VMs',
    input: FirecrackerRef.extend(Default),
    output: Firecracker,
    errors: ['not_found', 'unsupported'],
    args: ['firecracker'],
    tool: true,
  }),
  'firecracker.remove': op({
    method: 'DELETE',
    path: '/v1/firecrackers/:firecracker',
    summary: 'Remove a Firecracker that runs no VM',
    input: FirecrackerRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['firecracker'],
    tool: true,
  }),
};
