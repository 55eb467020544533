/** What nothing needs any more. */
import { z } from 'zod';
import { Bytes } from './common.ts';
import { op } from './op.ts';

export const GcItem = z.strictObject({
  kind: z.enum(['image', 'leftover']),
  name: z.string().describe('of an image; else the place below the data directory'),
  why: z.string(),
  own_bytes: Bytes.nullable().describe('what its removal gives back; null: not known'),
});
export type GcItem = z.infer<typeof GcItem>;

export const GcFailure = z.strictObject({
  ...GcItem.pick({ kind: true, name: true }).shape,
  why: z.string().describe('why it could not be removed'),
});
export type GcFailure = z.infer<typeof GcFailure>;

export const GcReport = z.strictObject({
  dry_run: z.boolean(),
  items: z.array(GcItem).describe('what was removed, or with dry_run: what would be'),
  failed: z.array(GcFailure).describe('what is not needed, but could not be removed'),
  freed_bytes: Bytes.describe('what that gives back, as far as it is known'),
  free_bytes: Bytes.describe('free in the data directory, now'),
  reserve_bytes: Bytes.describe('of that, what is kept back: work that would take from it is refused'),
});
export type GcReport = z.infer<typeof GcReport>;

export const gcOps = {
  'daemon.gc': op({
    method: 'POST',
    path: '/v1/gc',
    summary:
      'Remove what nothing needs: leftovers of failed work, and images of templates that are not the newest and that no workspace came from; never a workspace',
    input: z.strictObject({ dry_run: z.boolean().default(false).describe('only say what would be removed') }),
    output: GcReport,
    errors: ['no_room'],
    tool: true,
  }),
};
