import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import { Environment, type Overlay, Overlays, type Template } from '../api/template.ts';
import { needTemplate } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { checkSource } from './source.ts';

export const templateHandlers = (host: Host): HandlersOf<'template'> => ({
  'template.create': async (_ctx, input) => {
    const template = newTemplate(input);
    await checkSource(host, template);
    await host.step('template.insert', () => host.store.insertTemplate(template));
    return template;
  },
  'template.list': async () =>
    (await host.store.listTemplates()).map(({ overlays: _overlays, environment: _environment, ...item }) => item),
  'template.inspect': (_ctx, { template }) => needTemplate(host, template),
  'template.update': (_ctx, input) => updateTemplate(host, input),
  'template.remove': async (_ctx, { template }) => {
    const { id } = await needTemplate(host, template);
    await host.step('template.remove', () => host.store.removeTemplate(id));
    return {};
  },
});

/** The first version of a template. */
export const newTemplate = (input: OpIn<'template.create'>): Template => {
  const { sha256 = null, size_bytes = null, ...rest } = input;
  const now_ms = Date.now();
  return {
    ...{ id: newId('tpl'), version: 1, ...rest, sha256, size_bytes, created_at_ms: now_ms, updated_at_ms: now_ms },
  };
};

const updateTemplate = async (
  host: Host,
  { template: ref, ...changes }: OpIn<'template.update'>,
): Promise<Template> => {
  const old = await needTemplate(host, ref);
  if (Object.values(changes).every(change => change === undefined))
    throw new Fault('invalid', `Cannot update template '${old.name}': no change was given.`);
  const next = changed(old, changes);
  if (next.source !== old.source || next.source_type !== old.source_type || next.sha256 !== old.sha256)
    await checkSource(host, next);
  return host.step('template.update', () => host.store.updateTemplate(old.id, now => changed(now, changes)));
};

type Changes = Omit<OpIn<'template.update'>, 'template'>;

/** What it says with the changes. A hash belongs to one source: with another source it goes. */
const changed = (old: Template, changes: Changes): Template => {
  const { overlays = [], drop_overlays = [], environment = {}, drop_environment = [], ...plain } = changes;
  const given = Object.fromEntries(Object.entries(plain).filter(([, value]) => value !== undefined));
  const sha256 = plain.source !== undefined && plain.source !== old.source ? null : old.sha256;
  return {
    ...{ ...old, sha256, ...given },
    overlays: laid(old, overlays, drop_overlays),
    environment: variables(old, environment, drop_environment),
    updated_at_ms: Date.now(),
  };
};

const absent = (name: string, what: string): Fault =>
  new Fault('invalid', `Cannot update template '${name}': ${what}.`, { hint: `nexusctl template inspect ${name}` });

/** An overlay takes the place of those of its path, at the end: what was said last is laid last. */
const laid = (old: Template, overlays: readonly Overlay[], drop: readonly string[]): Overlay[] => {
  for (const path of drop)
    if (!old.overlays.some(o => o.path === path)) throw absent(old.name, `it has no overlay of '${path}'`);
  const gone = new Set([...drop, ...overlays.map(o => o.path)]);
  const all = [...old.overlays.filter(o => !gone.has(o.path)), ...overlays];
  return fits(old.name, Overlays.safeParse(all));
};

const variables = (old: Template, more: Record<string, string>, drop: readonly string[]): Record<string, string> => {
  const all = new Map(Object.entries(old.environment));
  for (const name of drop) if (!all.delete(name)) throw absent(old.name, `its environment has no '${name}'`);
  for (const [name, value] of Object.entries(more)) all.set(name, value);
  return fits(old.name, Environment.safeParse(Object.fromEntries(all)));
};

const fits = <T>(
  name: string,
  parsed: { data?: T; error?: { issues: readonly { message: string }[] } | undefined },
): T => {
  if (parsed.data !== undefined) return parsed.data;
  throw new Fault(
    'invalid',
    `Cannot update template '${name}': ${parsed.error?.issues[0]?.message ?? 'it is too large'}.`,
  );
};
