import { z } from 'zod';
import { Bytes, id, Name, Ref, TimeMs } from './common.ts';
import { Nothing, op } from './op.ts';

export const Workspace = z.strictObject({
  id: id('ws'),
  name: Name,
  image_id: z.string().nullable().describe('the image it is a clone of; null: an empty disk'),
  size_bytes: Bytes,
  vm_id: z.string().nullable().describe('the VM it is attached to'),
  role: z.enum(['root', 'data']).nullable().describe('what it is to that VM'),
  owned: z.boolean().describe('it goes when its VM is deleted'),
  created_at_ms: TimeMs,
});
export type Workspace = z.infer<typeof Workspace>;

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
    }),
    output: Workspace,
    errors: ['not_found', 'exists', 'invalid', 'no_room'],
    args: ['name'],
    tool: true,
  }),
  'ws.list': op({
    method: 'GET',
    path: '/v1/workspaces',
    summary: 'List workspaces, newest first',
    input: z.strictObject({}),
    output: z.array(Workspace),
    columns: ['id', 'name', 'image_id', 'size_bytes', 'vm_id', 'role', 'created_at_ms'],
    tool: true,
  }),
  'ws.get': op({
    method: 'GET',
    path: '/v1/workspaces/:ws',
    summary: 'Show one workspace',
    input: WsRef,
    output: Workspace,
    errors: ['not_found'],
    args: ['ws'],
    tool: true,
  }),
  'ws.attach': op({
    method: 'POST',
    path: '/v1/workspaces/:ws/attach',
    summary: 'Attach a workspace to a VM that does not run',
    input: z.strictObject({ ws: Ref, vm: Ref, role: z.enum(['root', 'data']).default('data') }),
    output: Workspace,
    errors: ['not_found', 'in_use', 'bad_state', 'busy'],
    args: ['ws'],
    tool: true,
  }),
  'ws.detach': op({
    method: 'POST',
    path: '/v1/workspaces/:ws/detach',
    summary: 'Detach a workspace from a VM that does not run',
    input: WsRef,
    output: Workspace,
    errors: ['not_found', 'bad_state', 'busy'],
    args: ['ws'],
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
