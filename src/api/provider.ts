/** Providers: rows that say where assets of one kind come from and by which pipeline they are fetched. */
import { z } from 'zod';
import { AssetKind } from './asset.ts';
import { id, Name, Ref, TimeMs } from './common.ts';
import { Nothing, op } from './op.ts';
import { Pipeline, ProviderKey, proves, unusedDocument } from './pipeline.ts';

/**
 * How versions are found and named at the source. `github`: releases of a repository; `anvil`: the same, of kernels; `alpine`: the tree of
 * Alpine's mirrors; `debian`: the signed package archives of the machine; `url`: templates alone, nothing can be listed.
 */
export const ProviderType = z.enum(['anvil', 'alpine', 'debian', 'github', 'url']);
export type ProviderType = z.infer<typeof ProviderType>;

/** Which types bring which kind. */
export const TYPES_OF: Record<AssetKind, readonly ProviderType[]> = {
  kernel: ['anvil', 'debian', 'github', 'url'],
  rootfs: ['alpine', 'debian', 'github', 'url'],
  firecracker: ['github', 'url'],
};

const Config = z
  .record(z.string().regex(/^[a-z][a-z0-9_]{0,31}$/), z.string().max(1024))
  .describe('repo, api, base, distro and what else the templates of the pipeline name');

export const Provider = z.strictObject({
  id: id('prv'),
  name: Name,
  kind: AssetKind,
  type: ProviderType,
  config: Config,
  pipeline: Pipeline,
  keys: z.array(ProviderKey).max(16).describe('the only keys whose signatures count'),
  unverified: z.boolean().describe('its assets cannot be proven, and are taken all the same'),
  is_default: z.boolean().describe('the one of its kind that is taken where none is named'),
  shipped: z.boolean().describe('as it came with Nexus; false once it was changed'),
  created_at_ms: TimeMs,
  updated_at_ms: TimeMs,
});
export type Provider = z.infer<typeof Provider>;

/** What a person writes. */
export type ProviderBody = Pick<Provider, 'name' | 'kind' | 'type' | 'config' | 'pipeline' | 'keys' | 'unverified'>;

/** Why a provider cannot be as it is, as the end of a sentence; undefined: it can. */
export const providerProblem = ({ kind, type, pipeline, keys, unverified }: ProviderBody): string | undefined => {
  if (!TYPES_OF[kind].includes(type)) return `a ${kind} comes by ${TYPES_OF[kind].join(', ')}, not by ${type}`;
  if (pipeline.some(s => s.stage === 'pgp') && keys.length === 0)
    return 'its pipeline has a pgp stage, and it has no keys';
  const unused = unusedDocument(pipeline);
  if (unused !== undefined) return `no sha256 stage of its pipeline takes its hash from the signed text ${unused}`;
  const proven = proves(pipeline);
  if (!proven && !unverified)
    return 'no stage of its pipeline proves anything (sha256, pgp or apt); say so with unverified if it must be so';
  return undefined;
};

const ProviderRef = z.strictObject({ provider: Ref });
const { pipeline, keys, unverified } = Provider.shape;

export const providerOps = {
  'provider.list': op({
    method: 'GET',
    path: '/v1/providers',
    summary: 'List the providers of assets',
    input: z.strictObject({ kind: AssetKind.optional() }),
    output: z.array(Provider),
    columns: ['name', 'kind', 'type', 'config', 'unverified', 'is_default', 'shipped'],
    tool: true,
  }),
  'provider.inspect': op({
    method: 'GET',
    path: '/v1/providers/:provider',
    summary: 'Show one provider: its pipeline and its keys',
    input: ProviderRef,
    output: Provider,
    errors: ['not_found'],
    args: ['provider'],
    tool: true,
  }),
  'provider.create': op({
    method: 'POST',
    path: '/v1/providers',
    summary: 'Create a provider',
    input: z.strictObject({
      name: Name,
      kind: AssetKind,
      type: ProviderType.default('url'),
      config: Config.default({}),
      pipeline,
      keys: keys.default([]),
      unverified: z.boolean().default(false).describe('needed for a pipeline that proves nothing'),
    }),
    output: Provider,
    errors: ['exists', 'invalid'],
    args: ['name'],
    tool: true,
  }),
  'provider.update': op({
    method: 'PATCH',
    path: '/v1/providers/:provider',
    summary: 'Change a provider; fields that are not given stay',
    input: z.strictObject({
      provider: Ref,
      config: Config.optional().describe('merged into what is there; an empty value removes its key'),
      pipeline: pipeline.optional(),
      keys: keys.optional(),
      unverified: unverified.optional(),
    }),
    output: Provider,
    errors: ['not_found', 'invalid'],
    args: ['provider'],
    tool: true,
  }),
  'provider.set_default': op({
    method: 'POST',
    path: '/v1/providers/:provider/default',
    summary: 'Make a provider the default of its kind',
    input: ProviderRef,
    output: Provider,
    errors: ['not_found'],
    args: ['provider'],
    tool: true,
  }),
  'provider.remove': op({
    method: 'DELETE',
    path: '/v1/providers/:provider',
    summary: 'Remove a provider; what came from it stays',
    input: ProviderRef,
    output: Nothing,
    errors: ['not_found', 'in_use'],
    args: ['provider'],
    tool: true,
  }),
};
