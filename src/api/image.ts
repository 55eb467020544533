import { z } from 'zod';
import { Arch, Bytes, id, Name, Ref, Sha256, Space, TimeMs } from './common.ts';
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
  build_id: z.string().nullable().describe('the build that made it; null: it was imported'),
  rootfs_id: z.string().nullable().describe('the archive it was built from, by ID'),
  agent_version: z.string().nullable().describe('null: it has no guest agent'),
  warning: z.string().nullable().describe('what may keep it from working'),
  sha256: Sha256.describe('of the ext4 file system'),
  size_bytes: Bytes.describe('length of the file system'),
  created_at_ms: TimeMs,
});
export type Image = z.infer<typeof Image>;

/** An image, and what it takes of the host. */
export const ImageListed = Image.extend(Space.shape);
export type ImageListed = z.infer<typeof ImageListed>;

/** An image, and what it comes from. */
export const ImageInspect = Image.extend({
  ...Space.shape,
  build: z
    .strictObject({
      id: z.string(),
      template_version: z.int().nullable(),
      source_type: z.enum(['rootfs', 'image']),
      source: z.string(),
      inputs_sha256: Sha256.nullable().describe('of all that its bytes follow from'),
      created_at_ms: TimeMs,
      ended_at_ms: TimeMs.nullable(),
    })
    .nullable()
    .describe('null: it was imported'),
  template: z
    .strictObject({ id: z.string(), name: Name, version: z.int().nullable().describe('of now; null: it was removed') })
    .nullable()
    .describe('null: it was built without one'),
  base: z.strictObject({ id: z.string(), name: Name }).nullable().describe('the image that it is built on'),
  rootfs: z
    .strictObject({
      id: z.string(),
      distro: z.string(),
      version: z.string(),
      provider: z.string().nullable(),
      source: z.string(),
      proofs: z.array(z.string()),
    })
    .nullable()
    .describe('the archive below all; null: it was removed'),
});
export type ImageInspect = z.infer<typeof ImageInspect>;

const ImageRef = z.strictObject({ image: Ref.describe('name, ID, or a template: its newest image') });
const HostPath = z
  .string()
  .max(4096)
  .regex(/^\/[^\0]*$/, 'an absolute path')
  .describe("a file of the daemon's host, by its absolute path");

export const imageOps = {
  'image.build': op({
    method: 'POST',
    path: '/v1/images/build',
    summary: 'Build an image of a root file system archive and the guest agent, without a template',
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
  'image.ensure': op({
    method: 'POST',
    path: '/v1/images/ensure',
    summary:
      'Have an image: by its name, of a template, or of a root file system; what is missing is downloaded and built',
    input: z.strictObject({
      image: Ref.describe('name or ID of an image, or a template, or distro:version such as debian:12'),
    }),
    output: z.strictObject({
      image_id: id('img').nullable().describe('it is there'),
      job: Job.nullable().describe('it is being made: the result of this job'),
    }),
    errors: ['not_found', 'invalid', 'exists', 'busy', 'unsupported', 'no_room'],
    args: ['image'],
    tool: true,
  }),
  'image.list': op({
    method: 'GET',
    path: '/v1/images',
    summary: 'List images, newest first',
    input: z.strictObject({}),
    output: z.array(ImageListed),
    columns: ['id', 'name', 'os', 'init', 'size_bytes', 'own_bytes', 'shared_bytes', 'created_at_ms'],
    tool: true,
  }),
  'image.inspect': op({
    method: 'GET',
    path: '/v1/images/:image',
    summary: 'Show one image and what it comes from',
    input: ImageRef,
    output: ImageInspect,
    errors: ['not_found'],
    args: ['image'],
    tool: true,
  }),
  'image.import': op({
    method: 'POST',
    path: '/v1/images/import',
    summary: 'Take a file with an ext4 file system as an image',
    input: z.strictObject({
      name: Name,
      from: HostPath,
      init: InitMode.optional().describe('default: as the label of an image of Nexus says, else agent'),
      arch: Arch.optional().describe("default: as its label says, else the host's own"),
    }),
    output: Job,
    errors: ['exists', 'busy', 'invalid', 'no_room', 'host'],
    args: ['name', 'from'],
    tool: true,
  }),
  'image.export': op({
    method: 'POST',
    path: '/v1/images/:image/export',
    summary: 'Copy the file system of an image into a new file',
    input: ImageRef.extend({ to: HostPath }),
    output: Job,
    errors: ['not_found', 'exists', 'invalid', 'no_room', 'host'],
    args: ['image', 'to'],
    tool: true,
  }),
  'image.remove': op({
    method: 'DELETE',
    path: '/v1/images/:image',
    summary: 'Remove an image that no workspace came from and no template builds on',
    input: ImageRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['image'],
    tool: true,
  }),
};
