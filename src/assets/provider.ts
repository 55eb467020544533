/** What a provider's row means: which values its templates take for a version, and which URLs are its own. */
import type { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import type { Provider } from '../api/provider.ts';
import { fill } from './template.ts';

export interface Wanted {
  version: string;
  arch: Arch;
}

export type Vars = Record<string, string>;

/** Alpine's tree has a folder for each series: 3.21.3 lies under v3.21. */
const branchOf = (version: string): string => version.split('.').slice(0, 2).join('.');

/** What the templates of a provider may name, for one version. Its config comes first: a row cannot change what we know better. */
export const varsOf = ({ type, config }: Pick<Provider, 'type' | 'config'>, { version, arch }: Wanted): Vars => {
  const vars: Vars = { ...config, version, arch };
  if (type === 'anvil') vars.asset = arch === 'x86_64' ? `vmlinux-${version}-x86_64` : `Image-${version}-aarch64`;
  if (type === 'alpine') vars.branch = branchOf(version);
  return vars;
};

/** The template of the URL of a provider's assets; undefined: they come otherwise. */
export const urlTemplate = ({ pipeline: [first] }: Pick<Provider, 'pipeline'>): string | undefined =>
  first?.stage === 'http' ? first.url : undefined;

/** The name of the file that is downloaded, which a release must have. */
export const fileOf = (provider: Provider, wanted: Wanted): string | undefined => {
  const template = urlTemplate(provider);
  return template === undefined ? undefined : fill(template, varsOf(provider, wanted)).split('/').at(-1);
};

const literal = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');

const ARCHES: readonly Arch[] = ['x86_64', 'aarch64'];

/** The template as a pattern; what only a version tells stays open, and a name that comes again must be the same again. */
const patternOf = (template: string, config: Provider['config']): RegExp => {
  const seen = new Set<string>();
  const source = template
    .split(/(\{[^{}]*\})/)
    .map(part => {
      const name = /^\{([a-z][a-z0-9_]*)\}$/.exec(part)?.[1];
      if (name === undefined) return literal(part);
      const known = Object.hasOwn(config, name) ? config[name] : undefined;
      if (known !== undefined) return literal(known);
      if (seen.has(name)) return `\\k<${name}>`;
      seen.add(name);
      return `(?<${name}>[0-9A-Za-z][0-9A-Za-z.+~_-]{0,127}?)`;
    })
    .join('');
  return new RegExp(`^${source}$`);
};

/** The version that a URL under a provider's tree names; undefined: it is not of this provider. Filled in again it gives the same URL. */
export const recognise = (provider: Provider, url: string): Wanted | undefined => {
  const template = urlTemplate(provider);
  if (template === undefined || !template.includes('{version}')) return undefined;
  const found = patternOf(template, provider.config).exec(url)?.groups;
  const version = found?.version;
  if (version === undefined) return undefined;
  const arch = ARCHES.find(one => {
    try {
      return fill(template, varsOf(provider, { version, arch: one })) === url;
    } catch (error) {
      if (error instanceof Fault) return false; // the template names what nobody knows
      throw error;
    }
  });
  return arch === undefined ? undefined : { version, arch };
};
