/** What kernels, root file systems and Firecrackers have in common: where they come from, and how that was proven. */
import { z } from 'zod';
import { Arch, Bytes, Ref, Sha256, TimeMs } from './common.ts';
import { Proof } from './pipeline.ts';

export const AssetKind = z.enum(['kernel', 'rootfs', 'firecracker']);
export type AssetKind = z.infer<typeof AssetKind>;

/** It becomes a part of URLs and paths: no slash, no colon, nothing that begins with a dot. */
export const Version = z
  .string()
  .regex(/^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,127}$/, 'a version has 1 to 128 of A-Z a-z 0-9 . + ~ _ -');

/** A version as it was typed, without the `v` that tags of releases begin with. */
export const bareVersion = (text: string): string => text.replace(/^v(?=\d)/, '');

/** Fields of every asset on disk. */
export const onDisk = {
  arch: Arch,
  provider: z.string().nullable().describe('name of the provider it came from; null: of none'),
  source: z.string().describe('the URL, the file, or the package with its version'),
  proofs: z.array(Proof).describe('how it was proven to be what its maker published; none: it was not'),
  sha256: Sha256.describe('of the file on disk, which verify compares'),
  size_bytes: Bytes,
  is_default: z.boolean().describe('it is taken where none is named; without a default the newest is'),
  created_at_ms: TimeMs,
};

/** Fields of every request to fetch one. */
export const wanted = {
  version: Version.optional().describe('a version, or a series such as 6.12; default: the newest'),
  provider: Ref.optional().describe('default: the default provider of this kind'),
  arch: Arch.optional().describe("default: the host's own"),
  from: z
    .string()
    .min(1)
    .max(4096)
    .optional()
    .describe("an https URL, or the absolute path of a file on the daemon's host, instead of a provider"),
  sha256: Sha256.optional().describe('what the bytes of --from must hash to; needed unless a provider proves them'),
};

/** Fields that choose among assets, on disk or at their source. */
export const chosen = {
  provider: Ref.optional().describe('only of this provider'),
  arch: Arch.optional().describe('only for this processor'),
};

/** A version that can be had. */
export const Available = z.strictObject({
  version: z.string(),
  arch: Arch,
  provider: z.string(),
  on_disk: z.boolean(),
});
export type Available = z.infer<typeof Available>;

/** Why fetching one may fail. */
export const FETCH_FAULTS = [
  'not_found',
  'invalid',
  'unsupported',
  'unverified',
  'no_room',
  'host',
  'timeout',
] as const;

export const Default = {
  off: z.boolean().default(false).describe('it is the default no more; then the newest is taken'),
};
