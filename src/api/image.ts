import { z } from 'zod';
import { Arch, Bytes, id, Name, Ref, Sha256, TimeMs } from './common.ts';
import { Job } from './job.ts';
import { Nothing, op } from './op.ts';

/** How the guest's PID 1 comes about: the agent itself, or an init of the image with the agent as its service. */
export const InitMode = z.enum(['agent', 'busybox', 'openrc', 'systemd']);
export type InitMode = z.infer<typeof InitMode>;

export const Image = z.strictObject({
  id: id('img'),
  name: Name,
  arch: Arch,
  init: InitMode,
  os: z.string().describe('PRETTY_NAME of its os-release'),
  rootfs_id: z.string().nullable().describe('the archive it was built from, by ID'),
  agent_version: z.string(),
  sha256: Sha256.describe('of the ext4 file system'),
  size_bytes: Bytes.describe('length of the file system'),
  created_at_ms: TimeMs,
});
export type Image = z.infer<typeof Image>;

const ImageRef = z.strictObject({ image: Ref });

export const imageOps = {
  'image.build': op({
    method: 'POST',
    path: '/v1/images/build',
    summary: 'Build an image: a root file system archive plus the guest agent, as ext4',
    input: z.strictObject({
      name: Name,
      rootfs: Ref.optional().describe(
        'ID, or distro:version such as debian:12; default: the default one, or the newest',
      ),
      init: z.enum(['auto', ...InitMode.options]).default('auto'),
      size_bytes: Bytes.min(16 * 1024 * 1024)
        .max(1024 ** 4)
        .optional()
        .describe('length of the file system; default: what its content needs, and a fifth'),
    }),
    output: Job,
    errors: ['not_found', 'exists', 'busy', 'invalid', 'no_room', 'host'],
    args: ['name'],
    tool: true,
  }),
  'image.list': op({
    method: 'GET',
    path: '/v1/images',
    summary: 'List images, newest first',
    input: z.strictObject({}),
    output: z.array(Image),
    columns: ['id', 'name', 'os', 'init', 'size_bytes', 'created_at_ms'],
    tool: true,
  }),
  'image.get': op({
    method: 'GET',
    path: '/v1/images/:image',
    summary: 'Show one image',
    input: ImageRef,
    output: Image,
    errors: ['not_found'],
    args: ['image'],
    tool: true,
  }),
  'image.remove': op({
    method: 'DELETE',
    path: '/v1/images/:image',
    summary: 'Remove an image that no workspace came from',
    input: ImageRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['image'],
    tool: true,
  }),
};
