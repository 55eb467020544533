import { z } from 'zod';
import { Bytes, Ref } from './common.ts';
import type { FaultCode } from './fault.ts';
import { Nothing, op } from './op.ts';

/** PATH_MAX of Linux without its NUL. */
const PATH_BYTES = 4095;

export const GuestPath = z
  .string()
  .regex(/^\/[^\0]*$/, 'an absolute path in the guest, without NUL')
  .refine(path => path.isWellFormed() && new TextEncoder().encode(path).length <= PATH_BYTES, {
    message: `a path has at most ${PATH_BYTES} bytes`,
  })
  .describe('absolute, in the guest');

export const Mode = z
  .string()
  .regex(/^[0-7]{3,4}$/, 'three or four octal digits')
  .describe('three or four octal digits, such as 0644');
export const Owner = z.int().min(0).max(0x7fff_ffff);
const uid = Owner.optional().describe('number of the owner');
const gid = Owner.optional().describe('number of the group');

const modified_at_ms = z
  .int()
  .min(-8.64e12)
  .max(8.64e12)
  .optional()
  .describe('the time of its last change, milliseconds since the epoch');

/** One file of a guest. */
export const FsEntry = z.strictObject({
  name: z.string().max(4096).describe('its last part; bytes that are not UTF-8 are replaced'),
  name_base64: z.base64().max(8192).optional().describe('the bytes of a name that is not UTF-8'),
  type: z.enum(['file', 'directory', 'link', 'fifo', 'socket', 'block', 'character']),
  size_bytes: Bytes,
  mode: Mode,
  uid: z.int().min(0),
  gid: z.int().min(0),
  modified_at_ms: z.int().describe('milliseconds since the epoch'),
  target: z.string().max(8192).nullable().describe('where a link leads; null: it is none'),
  etag: z.string().max(128).describe('another one when the content has changed'),
});
export type FsEntry = z.infer<typeof FsEntry>;

export const FsListMessage = z.strictObject({ type: z.literal('entry'), entry: FsEntry });
export type FsListMessage = z.infer<typeof FsListMessage>;

const changed = <T extends string>(type: T) =>
  z.strictObject({ type: z.literal(type), path: z.string().max(8192), directory: z.boolean() });

/** What happens below a watched path. */
export const FsWatchMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('watching'), path: z.string() }).describe('from now on nothing is missed'),
  changed('created'),
  changed('changed').describe('content, mode, owner or time'),
  changed('removed').describe('removed, or moved out of what is watched; of the watched path itself: the end'),
  changed('moved').extend({ new_path: z.string().max(8192) }),
  z.strictObject({ type: z.literal('overflow') }).describe('the guest had no room: events are missing here'),
]);
export type FsWatchMessage = z.infer<typeof FsWatchMessage>;

const at = (verb: string) => `/v1/vms/:vm/fs/${verb}` as const;
const File = z.strictObject({ vm: Ref, path: GuestPath });

/** The guest's kernel decides what it refuses, and any errno may come back from any of these. */
const REFUSALS: readonly FaultCode[] = ['not_found', 'exists', 'bad_state', 'busy', 'guest', 'timeout', 'unsupported'];

export const fsOps = {
  'fs.stat': op({
    method: 'GET',
    path: at('stat'),
    summary: 'Show one file of a VM',
    input: File.extend({ follow: z.boolean().default(false).describe('of a link: what it leads to') }),
    output: FsEntry,
    errors: REFUSALS,
    args: ['vm', 'path'],
    tool: true,
  }),
  'fs.list': op({
    method: 'GET',
    path: at('list'),
    summary: 'List a directory of a VM, in no order',
    input: File,
    output: FsListMessage,
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'sse',
  }),
  'fs.read': op({
    method: 'GET',
    path: at('read'),
    summary: 'Read a file of a VM',
    input: File.extend({
      offset_bytes: Bytes.default(0).describe('where to begin'),
      length_bytes: Bytes.optional().describe('how much; default: all'),
      etag: z.string().max(128).optional().describe('only this content: bad_state if it has changed'),
    }),
    output: FsEntry,
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'download',
  }),
  'fs.write': op({
    method: 'POST',
    path: at('write'),
    summary: 'Write a file of a VM: whole or not at all, if nothing else is asked for',
    input: File.extend({
      mode: Mode.optional().describe('default: as it is, or 0644'),
      uid,
      gid,
      modified_at_ms,
      append: z.boolean().default(false).describe('to the end of the file that is there'),
      offset_bytes: Bytes.optional().describe('in the file that is there, from this byte on'),
    }),
    output: z.strictObject({ bytes: Bytes.describe('bytes that were written'), entry: FsEntry }),
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'upload',
  }),
  'fs.watch': op({
    method: 'GET',
    path: at('watch'),
    summary: 'Tell what changes at a path of a VM, until it is gone',
    input: File.extend({ recursive: z.boolean().default(false).describe('directories below it, too') }),
    output: FsWatchMessage,
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'sse',
  }),
  'fs.export': op({
    method: 'GET',
    path: at('tree'),
    summary: 'Read a directory of a VM and all in it as a tar archive',
    input: File.extend({ devices: z.boolean().default(false).describe('device nodes, too') }),
    output: FsEntry,
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'download',
  }),
  'fs.import': op({
    method: 'POST',
    path: at('tree'),
    summary: 'Unpack a tar archive into a directory of a VM',
    input: File,
    output: z.strictObject({ entries: z.int().min(0), bytes: Bytes.describe('content of files') }),
    errors: REFUSALS,
    args: ['vm', 'path'],
    stream: 'upload',
  }),
  'fs.remove': op({
    method: 'POST',
    path: at('remove'),
    summary: 'Remove a file of a VM, or a directory with all in it',
    input: File.extend({ recursive: z.boolean().default(false).describe('a directory, and all in it') }),
    output: Nothing,
    errors: REFUSALS,
    args: ['vm', 'path'],
    tool: true,
  }),
  'fs.mkdir': op({
    method: 'POST',
    path: at('mkdir'),
    summary: 'Make a directory in a VM',
    input: File.extend({
      parents: z.boolean().default(false).describe('those above it, too; one that is there is fine'),
      mode: Mode.default('0755'),
      uid,
      gid,
    }),
    output: Nothing,
    errors: REFUSALS,
    args: ['vm', 'path'],
    tool: true,
  }),
  'fs.rename': op({
    method: 'POST',
    path: at('rename'),
    summary: 'Rename a file of a VM, or move it within its file system',
    input: File.extend({
      new_path: GuestPath,
      replace: z.boolean().default(false).describe('take the place of a file that is there'),
    }),
    output: Nothing,
    errors: REFUSALS,
    args: ['vm', 'path', 'new_path'],
    tool: true,
  }),
  'fs.chmod': op({
    method: 'POST',
    path: at('chmod'),
    summary: 'Change mode, owner or time of a file of a VM',
    input: File.extend({ mode: Mode.optional(), uid, gid, modified_at_ms }),
    output: Nothing,
    errors: REFUSALS,
    args: ['vm', 'path', 'mode'],
    tool: true,
  }),
};
