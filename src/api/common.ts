/** Field schemas that several nouns share. Units are in the names: `_ms`, `_mib`, `_bytes`. */
import { z } from 'zod';

/** A TypeID: prefix, underscore, 26 characters of base32 (https://github.com/jetify-com/typeid). */
export const ID_PATTERN = /^[a-z]+_[0-7][0-9a-hjkmnp-tv-z]{25}$/;
export const NAME_PATTERN = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/;

export const id = <P extends string>(prefix: P) =>
  z
    .string()
    .regex(ID_PATTERN)
    .refine(s => s.startsWith(`${prefix}_`), `an ID that begins with ${prefix}_`)
    .describe(`TypeID, ${prefix}_…`);

export const Name = z
  .string()
  .regex(NAME_PATTERN, 'a name has 1 to 63 of a-z 0-9 . _ - and begins and ends with a letter or digit')
  .refine(s => !ID_PATTERN.test(s), 'a name may not look like an ID')
  .describe('1 to 63 of a-z 0-9 . _ -; may not look like an ID');

/** A reference: a name or an ID. */
export const Ref = z.string().min(1).max(128).describe('name or ID');

export const TimeMs = z.int().min(0).describe('milliseconds since the epoch');
export const Bytes = z.int().min(0).describe('bytes');
/** What a disk takes of the host's file system. */
export const Space = z.strictObject({
  used_bytes: Bytes.nullable().describe('what it takes of the host, shared or not; null: its file is missing'),
  own_bytes: Bytes.nullable().describe('of that, what nothing else shares: its removal gives it back; null: not known'),
  shared_bytes: Bytes.nullable().describe('of that, what other disks share; null: not known'),
});
export type Space = z.infer<typeof Space>;

export const Sha256 = z.string().regex(/^[0-9a-f]{64}$/);
export const Arch = z.enum(['x86_64', 'aarch64']);
export type Arch = z.infer<typeof Arch>;

/** How long to wait, at most; a human form exists on the command line (`--timeout 90s`). */
export const TimeoutMs = z
  .int()
  .min(1)
  .max(24 * 3600 * 1000);
