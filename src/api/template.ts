/** Blueprints of images: what is laid over which archive. */
import { z } from 'zod';
import { Bytes, id, Name, Ref, Sha256, TimeMs } from './common.ts';
import { InitMode } from './image.ts';
import { Nothing, op } from './op.ts';

const MIB = 1024 * 1024;
/** All that the overlays of a template hold themselves; what is larger is named as a file of the host. */
const MAX_CONTENT = 4 * MIB;
const MAX_OVERLAYS = 1000;
const MAX_VARIABLES = 200;

export const SourceType = z.enum(['rootfs', 'image']);
export type SourceType = z.infer<typeof SourceType>;

/** The forms that an overlay may have: exactly one of them. */
const FORMS = ['content', 'bytes_base64', 'host_file', 'symlink', 'delete'] as const;

const Path = z
  .string()
  .max(4096)
  .regex(/^(\/[^/\0]+)+$/, 'a path begins with a slash and has no empty part')
  .refine(path => !path.split('/').some(part => part === '.' || part === '..'), "a path has no part '.' or '..'");

export const Overlay = z
  .strictObject({
    path: Path.describe('absolute, in the image'),
    content: z.string().optional().describe('a file with this text'),
    bytes_base64: z.base64().optional().describe('a file with these bytes'),
    host_file: z
      .string()
      .max(4096)
      .regex(/^\/[^\0]*$/, 'a file of the host has an absolute path')
      .optional()
      .describe("a file with what this file of the daemon's host holds when the build starts"),
    sha256: Sha256.optional().describe('what the host_file must hold'),
    symlink: z
      .string()
      .min(1)
      .max(4095)
      .refine(target => !target.includes('\0'), 'a target has no NUL')
      .optional()
      .describe('a symbolic link to this'),
    delete: z.literal(true).optional().describe('take away what is there, and all below it'),
    mode: z
      .string()
      .regex(/^[0-7]{3,4}$/, 'a mode has three or four octal digits')
      .optional()
      .describe('such as 0755; default: that of the file it replaces, else 0644'),
    uid: z.int().min(0).max(0xfffffffe).optional().describe('default: that of what it replaces, else 0'),
    gid: z.int().min(0).max(0xfffffffe).optional(),
  })
  .refine(o => FORMS.filter(form => o[form] !== undefined).length === 1, `an overlay has one of ${FORMS.join(', ')}`)
  .refine(o => o.sha256 === undefined || o.host_file !== undefined, 'sha256 goes with host_file')
  .refine(
    o => o.delete === undefined || (o.mode ?? o.uid ?? o.gid) === undefined,
    'what is deleted has no mode and no owner',
  )
  .refine(o => o.symlink === undefined || o.mode === undefined, 'a symbolic link has no mode');
export type Overlay = z.infer<typeof Overlay>;

const contentOf = (overlays: readonly { content?: unknown; bytes_base64?: unknown }[]): number =>
  overlays.reduce((sum, o) => sum + String(o.content ?? '').length + String(o.bytes_base64 ?? '').length, 0);

export const Overlays = z
  .array(Overlay)
  .max(MAX_OVERLAYS)
  .refine(
    list => contentOf(list) <= MAX_CONTENT,
    'all overlays together hold more than 4 MiB; name large files as host_file',
  );

export const Environment = z
  .record(
    z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'a variable has a name that a shell takes'),
    z
      .string()
      .max(32 * 1024)
      .refine(value => !value.includes('\0'), 'a value has no NUL'),
  )
  .refine(map => Object.keys(map).length <= MAX_VARIABLES, `at most ${MAX_VARIABLES} variables`);

export const InitChoice = z.enum(['auto', ...InitMode.options]);
export type InitChoice = z.infer<typeof InitChoice>;

export const ImageSize = Bytes.min(16 * MIB).max(1024 ** 4);

/** What a template says of an image; a build has a copy of it. */
export const blueprint = {
  source_type: SourceType.describe('rootfs: an archive; image: another image, with what it was built from'),
  source: z
    .string()
    .describe(
      'rootfs: ID, distro:version, an absolute path of the host, or an https URL; image: its name, ID, or its template',
    ),
  sha256: Sha256.nullable().describe('of the file at the path or URL'),
  overlays: Overlays.describe('in the order in which they are laid'),
  size_bytes: ImageSize.nullable().describe('length of the file system; null: what its content needs, and a fifth'),
  init: InitChoice,
  environment: Environment.describe('of login shells, services and commands in the guest'),
};

/** Names of images are made of those of templates. */
const TemplateName = Name.max(40, 'a template has a name of at most 40 characters');

export const Template = z.strictObject({
  id: id('tpl'),
  name: TemplateName,
  version: z.int().min(1).describe('grows by one with each change'),
  ...blueprint,
  created_at_ms: TimeMs,
  updated_at_ms: TimeMs,
});
export type Template = z.infer<typeof Template>;

/** Without what may be long. */
export const TemplateItem = Template.omit({ overlays: true, environment: true });

const Source = z.string().min(1).max(4096);
const TemplateRef = z.strictObject({ template: Ref });
const AddOverlays = Overlays.describe(
  'PATH=TEXT, PATH=@FILE with what a file here holds, or JSON; laid in their order over the archive',
);

export const templateOps = {
  'template.create': op({
    method: 'POST',
    path: '/v1/templates',
    summary: 'Create a template: what an image is built from',
    input: z.strictObject({
      name: TemplateName,
      source_type: SourceType.default('rootfs').describe(blueprint.source_type.description ?? ''),
      source: Source.describe(blueprint.source.description ?? ''),
      sha256: Sha256.optional().describe('of the file at the path or URL; needed unless a provider proves it'),
      overlays: AddOverlays.default([]),
      size_bytes: ImageSize.optional().describe(blueprint.size_bytes.description ?? ''),
      init: InitChoice.default('auto'),
      environment: Environment.default({}).describe(blueprint.environment.description ?? ''),
    }),
    output: Template,
    errors: ['invalid', 'exists', 'not_found', 'unsupported'],
    args: ['name'],
    tool: true,
  }),
  'template.list': op({
    method: 'GET',
    path: '/v1/templates',
    summary: 'List templates, newest first',
    input: z.strictObject({}),
    output: z.array(TemplateItem),
    columns: ['id', 'name', 'version', 'source_type', 'source', 'init', 'updated_at_ms'],
    tool: true,
  }),
  'template.inspect': op({
    method: 'GET',
    path: '/v1/templates/:template',
    summary: 'Show one template',
    input: TemplateRef,
    output: Template,
    errors: ['not_found'],
    args: ['template'],
    tool: true,
  }),
  'template.update': op({
    method: 'PATCH',
    path: '/v1/templates/:template',
    summary: 'Change a template; what was built from it stays as it is',
    input: TemplateRef.extend({
      source_type: SourceType.optional(),
      source: Source.optional(),
      sha256: Sha256.nullable().optional(),
      overlays: AddOverlays.optional().describe(
        'PATH=TEXT, PATH=@FILE with what a file here holds, or JSON; takes the place of the overlays of that path',
      ),
      drop_overlays: z.array(z.string().max(4096)).max(MAX_OVERLAYS).optional().describe('paths without overlay again'),
      size_bytes: ImageSize.nullable().optional(),
      init: InitChoice.optional(),
      environment: Environment.optional().describe('added to the environment'),
      drop_environment: z.array(z.string().max(128)).max(MAX_VARIABLES).optional().describe('names to take out of it'),
    }),
    output: Template,
    errors: ['invalid', 'not_found', 'unsupported'],
    args: ['template'],
    tool: true,
  }),
  'template.remove': op({
    method: 'DELETE',
    path: '/v1/templates/:template',
    summary: 'Remove a template; what was built from it stays',
    input: TemplateRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['template'],
    tool: true,
  }),
};
