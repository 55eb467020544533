/** What the guest says of its files (docs/guest-protocol.md), bounded, and the paths of requests for them. */
import { z } from 'zod';
import { FsEntry } from '../api/fs.ts';

/** Unknown fields are left out: a later agent of the same generation may say more. */
export const Entry = z.object(FsEntry.shape);
export const Written = z.object({ bytes: z.int().min(0), entry: Entry });
export type Written = z.infer<typeof Written>;

export const Taken = z.object({ entries: z.int().min(0), bytes: z.int().min(0) });
export type Taken = z.infer<typeof Taken>;

const Path = z.string().max(8192);
const changed = <T extends string>(type: T) =>
  z.object({ type: z.literal(type), path: Path, directory: z.boolean().default(false) });
export const Change = z.discriminatedUnion('type', [
  z.object({ type: z.literal('watching'), path: Path }),
  changed('created'),
  changed('changed'),
  changed('removed'),
  changed('moved').extend({ new_path: Path }),
  z.object({ type: z.literal('overflow') }),
]);

/** `/v1/fs/<verb>` with the fields that have a value. */
export const pathOf = (verb: string, fields: Record<string, string | number | undefined>): string => {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(fields)) if (value !== undefined) query.set(key, String(value));
  return `/v1/fs/${verb}?${query}`;
};
