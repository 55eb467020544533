import { Fault } from '../api/fault.ts';
import { type Provider, type ProviderBody, providerProblem } from '../api/provider.ts';
import { SHIPPED } from '../assets/shipped.ts';
import { needProvider } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';

const checked = <B extends ProviderBody>(body: B): B => {
  const problem = providerProblem(body);
  if (problem !== undefined) throw new Fault('invalid', `Provider '${body.name}' cannot be so: ${problem}.`);
  return body;
};

/** Merged; an empty value takes its key away. */
const merged = (before: Provider['config'], change: Provider['config'] = {}): Provider['config'] =>
  Object.fromEntries(Object.entries({ ...before, ...change }).filter(([, value]) => value !== ''));

export const providerHandlers = (host: Host): HandlersOf<'provider'> => ({
  'provider.list': (_ctx, { kind }) => host.store.listProviders(kind),
  'provider.inspect': (_ctx, { provider }) => needProvider(host, provider),
  'provider.create': async (_ctx, input) => {
    const now = Date.now();
    const rest = { is_default: false, shipped: false, created_at_ms: now, updated_at_ms: now };
    return host.store.insertProvider({ id: newId('prv'), ...checked(input), ...rest });
  },
  'provider.update': async (_ctx, { provider: ref, config, ...given }) => {
    const { id, name } = await needProvider(host, ref);
    const changes = Object.entries(given).filter(([, value]) => value !== undefined);
    if (changes.length === 0 && config === undefined)
      throw new Fault('invalid', `Cannot update provider '${name}': no change was given.`);
    return host.store.updateProvider(id, before => ({
      ...checked({ ...before, ...Object.fromEntries(changes), config: merged(before.config, config) }),
      shipped: false,
      updated_at_ms: Date.now(),
    }));
  },
  'provider.set_default': async (_ctx, { provider }) =>
    host.store.setDefaultProvider((await needProvider(host, provider)).id),
  'provider.remove': async (_ctx, { provider }) => {
    await host.store.removeProvider((await needProvider(host, provider)).id);
    return {};
  },
});

/** Brings the providers that come with Nexus into a store that has not seen them yet. */
export const seedProviders = async (host: Host): Promise<void> => {
  const now = Date.now();
  await host.store.seedProviders(
    SHIPPED.map(row => ({ ...row, id: newId('prv'), shipped: true, created_at_ms: now, updated_at_ms: now })),
  );
};
