/** Templates. A change makes the next version; a name that an image has is not taken, for both are named where an image is meant. */
import { isDeepStrictEqual } from 'node:util';
import type { Transaction } from 'kysely';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Template } from '../api/template.ts';
import { codec, type Db, none, type Tables, unlessTaken } from './sqlite.ts';
import type { TemplateStore } from './store.ts';

type Trx = Transaction<Tables>;
const rows = codec('template', Template);

const getTemplate = async (db: Db, id: string): Promise<Template> => {
  const row = await db.selectFrom('templates').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('template', id);
  return rows.fromRow(row);
};

const insert = async (trx: Trx, template: Template): Promise<void> => {
  const { name } = template;
  if ((await trx.selectFrom('images').select('id').where('name', '=', name).executeTakeFirst()) !== undefined)
    throw new Fault('exists', `Cannot create template '${name}': an image has that name.`, {
      hint: 'where an image is meant, both are named: choose another name',
    });
  await unlessTaken(`Template '${name}'`, () => trx.insertInto('templates').values(rows.toRow(template)).execute());
};

/** Its version and its times aside. */
const saysThe = (same: Template, as: Template): boolean =>
  isDeepStrictEqual(same, { ...as, version: same.version, updated_at_ms: same.updated_at_ms });

type Below = Pick<Tables['templates'], 'id' | 'source' | 'source_type'>;

const belowOf = (trx: Trx, source: string): Promise<Below | undefined> => {
  const key = ID_PATTERN.test(source) ? 'id' : 'name';
  return trx.selectFrom('templates').select(['id', 'source', 'source_type']).where(key, '=', source).executeTakeFirst();
};

/** A template that builds on its own images, also through others, could never be removed, and what is below would be laid again and again. */
const refuseCircle = async (trx: Trx, { id, name, ...of }: Template): Promise<void> => {
  let next: Below | undefined = { id, ...of };
  for (const seen = new Set<string>(); next?.source_type === 'image' && !seen.has(next.id); ) {
    seen.add(next.id);
    next = await belowOf(trx, next.source);
    if (next?.id === id)
      throw new Fault('invalid', `Cannot update template '${name}': it would build on its own images.`, {
        hint: 'name the image by its own name or ID: that one does not change',
      });
  }
};

const update = async (trx: Trx, id: string, change: (template: Template) => Template): Promise<Template> => {
  const old = await getTemplate(trx, id);
  const changed = { ...change(old), id };
  if (saysThe(old, changed)) return old;
  if (changed.source !== old.source || changed.source_type !== old.source_type) await refuseCircle(trx, changed);
  const next = { ...changed, version: old.version + 1 };
  const { id: _id, ...columns } = rows.toRow(next);
  await trx.updateTable('templates').set(columns).where('id', '=', id).execute();
  return next;
};

const remove = async (trx: Trx, id: string): Promise<void> => {
  const { name } = await getTemplate(trx, id);
  const refuse = (why: string, hint: string) =>
    new Fault('in_use', `Cannot remove template '${name}': ${why}.`, { hint });
  const build = await trx
    .selectFrom('builds')
    .select('id')
    .where('template_id', '=', id)
    .where('state', '=', 'building')
    .executeTakeFirst();
  if (build !== undefined) throw refuse(`build '${build.id}' of it runs`, `nexusctl build cancel ${build.id}`);
  const user = await trx
    .selectFrom('templates')
    .select('name')
    .where('source_type', '=', 'image')
    .where('source', 'in', [id, name])
    .where('id', '!=', id) // of an older Nexus
    .executeTakeFirst();
  if (user !== undefined)
    throw refuse(`template '${user.name}' builds on its images`, `nexusctl template remove ${user.name}`);
  await trx.deleteFrom('templates').where('id', '=', id).execute();
};

export const templateStore = (db: Db): TemplateStore => ({
  insertTemplate: template => db.transaction().execute(trx => insert(trx, template)),

  findTemplate: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'name';
    const row = await db.selectFrom('templates').selectAll().where(key, '=', ref).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listTemplates: async () => {
    const query = db.selectFrom('templates').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
    return (await query.execute()).map(rows.fromRow);
  },

  updateTemplate: (id, change) => db.transaction().execute(trx => update(trx, id, change)),
  removeTemplate: id => db.transaction().execute(trx => remove(trx, id)),
});
