/** Builds: each is one run of a template, with a copy of what the template said then. */
import { z } from 'zod';
import { id, Name, Ref, Sha256, TimeMs } from './common.ts';
import { JobError, JobMessage } from './job.ts';
import { op } from './op.ts';
import { blueprint } from './template.ts';

export const BuildState = z.enum(['building', 'success', 'failed', 'canceled']);
export type BuildState = z.infer<typeof BuildState>;

export const Build = z.strictObject({
  id: id('bld'),
  image_name: Name.describe('of the image that it makes'),
  template_id: z.string().nullable().describe('null: image build, which has no template'),
  template: Name.nullable().describe('name of the template'),
  template_version: z.int().nullable(),
  ...blueprint,
  overlays: blueprint.overlays.describe('in the order in which they are laid, those of the image below first'),
  base_image_id: z.string().nullable().describe('the image that it is built on'),
  rootfs_id: z.string().nullable().describe('the archive below all; null: it was not found yet'),
  state: BuildState.describe('building: it waits for its turn, or runs; its job says which'),
  job_id: z.string(),
  image_id: z.string().nullable().describe('the image that it made'),
  inputs_sha256: Sha256.nullable().describe('of all that the bytes of the image follow from'),
  image_sha256: Sha256.nullable().describe('of the file system'),
  error: JobError.nullable().describe('why there is no image'),
  created_at_ms: TimeMs,
  ended_at_ms: TimeMs.nullable(),
});
export type Build = z.infer<typeof Build>;

/** Without what may be long. */
export const BuildItem = Build.omit({ overlays: true, environment: true });
export type BuildItem = z.infer<typeof BuildItem>;

export const buildItem = ({ overlays: _overlays, environment: _environment, ...item }: Build): BuildItem => item;

const BuildRef = z.strictObject({ build: Ref.describe('ID, or a template: its newest build') });

export const buildOps = {
  'build.trigger': op({
    method: 'POST',
    path: '/v1/builds',
    summary: 'Build an image of a template; answers at once',
    input: z.strictObject({ template: Ref }),
    output: BuildItem,
    errors: ['not_found', 'invalid', 'unsupported', 'no_room'],
    args: ['template'],
    tool: true,
  }),
  'build.list': op({
    method: 'GET',
    path: '/v1/builds',
    summary: 'List builds, newest first',
    input: z.strictObject({
      template: Ref.optional().describe('only of this template'),
      state: BuildState.optional(),
      limit: z.int().min(1).max(1000).default(100),
    }),
    output: z.array(BuildItem),
    errors: ['not_found'],
    columns: ['id', 'image_name', 'template', 'template_version', 'state', 'created_at_ms', 'ended_at_ms'],
    tool: true,
  }),
  'build.inspect': op({
    method: 'GET',
    path: '/v1/builds/:build',
    summary: 'Show one build, with all that it was made of',
    input: BuildRef,
    output: Build,
    errors: ['not_found'],
    args: ['build'],
    tool: true,
  }),
  'build.logs': op({
    method: 'GET',
    path: '/v1/builds/:build/logs',
    summary: 'Show the log of a build',
    input: BuildRef.extend({ follow: z.boolean().default(false).describe('until its end') }),
    output: JobMessage,
    errors: ['not_found'],
    args: ['build'],
    stream: 'sse',
  }),
  'build.cancel': op({
    method: 'POST',
    path: '/v1/builds/:build/cancel',
    summary: 'Cancel a build; returns when nothing is left of it',
    input: BuildRef,
    output: BuildItem,
    errors: ['not_found', 'bad_state'],
    args: ['build'],
    tool: true,
  }),
};
