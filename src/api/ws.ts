import { z } from 'zod';
import { Bytes, id, Name, Ref, Space, TimeMs } from './common.ts';
import { Nothing, op } from './op.ts';

/** More virtio devices than this and the root's would want a machine with more interrupts. */
export const MAX_DATA_DISKS = 8;

/** What an init mounts over, or the system itself lies in: a disk there would be hidden, or hide it. */
const NOT_BELOW = ['proc', 'sys', 'dev', 'run', 'tmp'];
const NOT_AT = /^\/(bin|sbin|lib(32|64|x32)?|etc(\/nexus)?|boot|var|usr(\/(bin|sbin|lib|lib64|lib\/nexus))?)$/;

/** A place for a disk in the guest. It is a word of the kernel's command line, so it is plain. */
const MountPath = z
  .string()
  .max(80)
  .regex(/^(\/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$/, 'an absolute path of plain letters, digits, . _ + and -')
  .refine(path => !NOT_BELOW.includes(path.split('/')[1] ?? '') && !NOT_AT.test(path), {
    error: 'the system itself lies there',
  });

export const Workspace = z.strictObject({
  id: id('ws'),
  name: Name,
  image_id: z.string().nullable().describe('the image it is a clone of; null: it began as an empty disk'),
  source_ws_id: z.string().nullable().describe('the workspace it is a snapshot of'),
  size_bytes: Bytes,
  vm_id: z.string().nullable().describe('the VM it is attached to'),
  role: z.enum(['root', 'data']).nullable().describe('what it is to that VM'),
  position: z
    .int()
    .min(0)
    .nullable()
    .describe('among the disks of that VM: 0 is its root, /dev/vda, 1 is /dev/vdb, and so on'),
  mount: z.string().nullable().describe('where the guest has it mounted'),
  read_only: z.boolean().describe('the guest can only read it'),
  owned: z.boolean().describe('it goes when its VM is deleted'),
  created_at_ms: TimeMs,
});
export type Workspace = z.infer<typeof Workspace>;

/** A workspace, the names of what it hangs together with, and what it takes of the host. */
export const WsInspect = z.strictObject({
  ...Workspace.shape,
  image_name: Name.nullable(),
  vm_name: Name.nullable(),
  ...Space.shape,
  path: z.string().describe('of its disk on the host'),
});
export type WsInspect = z.infer<typeof WsInspect>;

/** What came of a wish for a longer disk. */
export const WsGrown = z.strictObject({
  ...Workspace.shape,
  file_system: z
    .enum(['grown', 'at_next_start', 'not_mounted'])
    .describe(
      'grown: the running guest has the room now; at_next_start: when a VM that mounts it is started next; not_mounted: what is on the disk is for the guest to grow',
    ),
  notice: z.string().optional().describe('why the running guest does not have it yet'),
});
export type WsGrown = z.infer<typeof WsGrown>;

const WsRef = z.strictObject({ ws: Ref });
const SizeBytes = Bytes.min(16 * 1024 * 1024).max(64 * 1024 ** 4);

export const wsOps = {
  'ws.create': op({
    method: 'POST',
    path: '/v1/workspaces',
    summary: 'Create a writable clone of an image, or an empty disk',
    input: z.strictObject({
      name: Name.optional().describe('default: one is made up'),
      image: Ref.optional().describe('default: an empty disk'),
      size_bytes: SizeBytes.optional().describe("default: the image's own size; required for an empty disk"),
      format: z
        .enum(['ext4', 'none'])
        .optional()
        .describe('what an empty disk begins as: an ext4 file system that has its name as label (default), or nothing'),
    }),
    output: Workspace,
    errors: ['not_found', 'exists', 'invalid', 'no_room', 'host'],
    args: ['name'],
    tool: true,
  }),
  'ws.list': op({
    method: 'GET',
    path: '/v1/workspaces',
    summary: 'List workspaces, newest first',
    input: z.strictObject({}),
    output: z.array(WsInspect),
    columns: ['id', 'name', 'image_name', 'size_bytes', 'own_bytes', 'shared_bytes', 'vm_name', 'role', 'mount'],
    tool: true,
  }),
  'ws.inspect': op({
    method: 'GET',
    path: '/v1/workspaces/:ws',
    summary: 'Show one workspace',
    input: WsRef,
    output: WsInspect,
    errors: ['not_found'],
    args: ['ws'],
    tool: true,
  }),
  'ws.update': op({
    method: 'PATCH',
    path: '/v1/workspaces/:ws',
    summary: 'Lengthen a workspace, and the file system on it, also while its VM runs',
    input: z.strictObject({ ws: Ref, size_bytes: SizeBytes.describe('its new length; disks do not shrink') }),
    output: WsGrown,
    errors: ['not_found', 'invalid', 'bad_state', 'busy', 'in_use', 'no_room'],
    args: ['ws'],
    tool: true,
  }),
  'ws.attach': op({
    method: 'POST',
    path: '/v1/workspaces/:ws/attach',
    summary: 'Attach a workspace to a VM that does not run, after the disks that it has',
    input: z.strictObject({
      ws: Ref,
      vm: Ref,
      role: z.enum(['root', 'data']).default('data'),
      mount: MountPath.optional().describe('where the guest mounts it at each start; it must be ext4'),
      read_only: z.boolean().default(false).describe('the guest can only read it'),
    }),
    output: Workspace,
    errors: ['not_found', 'in_use', 'invalid', 'bad_state', 'busy'],
    args: ['ws', 'vm'],
    tool: true,
  }),
  'ws.detach': op({
    method: 'POST',
    path: '/v1/workspaces/:ws/detach',
    summary: 'Detach a workspace from a VM that does not run; disks attached after it move up',
    input: WsRef,
    output: Workspace,
    errors: ['not_found', 'bad_state', 'busy', 'in_use'],
    args: ['ws'],
    tool: true,
  }),
  'ws.snapshot': op({
    method: 'POST',
    path: '/v1/workspaces/:ws/snapshot',
    summary: 'Make a new workspace that begins as this one is now; its VM must not run',
    input: z.strictObject({ ws: Ref, name: Name.optional().describe('default: one is made up') }),
    output: Workspace,
    errors: ['not_found', 'exists', 'bad_state', 'busy', 'in_use', 'no_room', 'host'],
    args: ['ws', 'name'],
    tool: true,
  }),
  'ws.remove': op({
    method: 'DELETE',
    path: '/v1/workspaces/:ws',
    summary: 'Remove a workspace and its data; it must not be attached',
    input: WsRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['ws'],
    tool: true,
  }),
};
