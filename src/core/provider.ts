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

/** One change of the table. */
const write = <T>(host: Host, work: () => Promise<T>): Promise<T> => host.step('provider.write', work);

export const providerHandlers = (host: Host): HandlersOf<'provider'> => ({
  'provider.list': (_ctx, { kind }) => host.store.listProviders(kind),
  'provider.inspect': (_ctx, { provider }) => needProvider(host, provider),
  'provider.create': async (_ctx, input) => {
    const now = Date.now();
    const rest = { is_default: false, shipped: false, created_at_ms: now, updated_at_ms: now };
    return write(host, () => host.store.insertProvider({ id: newId('prv'), ...checked(input), ...rest }));
  },
  'provider.update': async (_ctx, { provider: ref, config, ...given }) => {
    const { id, name } = await needProvider(host, ref);
    const changes = Object.entries(given).filter(([, value]) => value !== undefined);
    if (changes.length === 0 && config === undefined)
      throw new Fault('invalid', `Cannot update provider '${name}': no change was given.`);
    const change = (before: Provider): Provider => ({
      ...checked({ ...before, ...Object.fromEntries(changes), config: merged(before.config, config) }),
      shipped: false,
      updated_at_ms: Date.now(),
    });
    return write(host, () => host.store.updateProvider(id, change));
  },
  'provider.set_default': async (_ctx, { provider }) => {
    const { id } = await needProvider(host, provider);
    return write(host, () => host.store.setDefaultProvider(id));
  },
  'provider.remove': async (_ctx, { provider }) => {
    const { id } = await needProvider(host, provider);
    await write(host, () => host.store.removeProvider(id));
    return {};
  },
});

/** Brings the providers that come with Nexus into a store that has not seen them yet. */
export const seedProviders = async (host: Host): Promise<void> => {
  const now = Date.now();
  const rest = { shipped: true, created_at_ms: now, updated_at_ms: now };
  const rows = SHIPPED.map(row => ({ id: newId('prv'), ...row, ...rest }));
  await host.step('provider.seed', () => host.store.seedProviders(rows));
};
