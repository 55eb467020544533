/** Providers: rows that say where assets come from. One of each kind is its default. */
import { isDeepStrictEqual } from 'node:util';
import type { Transaction } from 'kysely';
import type { AssetKind } from '../api/asset.ts';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Provider } from '../api/provider.ts';
import { codec, type Db, none, type Tables, unlessTaken } from './sqlite.ts';
import type { ProviderStore, ShippedProvider } from './store.ts';

type Trx = Transaction<Tables>;
const rows = codec('provider', Provider);

/** What was shipped last, as a note. */
const SEEDED = 'providers_seed';

const getProvider = async (db: Db, id: string): Promise<Provider> => {
  const row = await db.selectFrom('providers').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('provider', id);
  return rows.fromRow(row);
};

const hasDefault = async (trx: Trx, kind: AssetKind): Promise<boolean> =>
  (await trx
    .selectFrom('providers')
    .select('id')
    .where('kind', '=', kind)
    .where('is_default', '=', 1)
    .executeTakeFirst()) !== undefined;

const insert = async (trx: Trx, provider: Provider): Promise<Provider> => {
  const is_default = !(await hasDefault(trx, provider.kind)) || provider.is_default;
  const whole = { ...provider, is_default };
  await unlessTaken(`Provider '${provider.name}'`, () =>
    trx.insertInto('providers').values(rows.toRow(whole)).execute(),
  );
  return whole;
};

const save = async (trx: Trx, provider: Provider): Promise<Provider> => {
  const { id, ...columns } = rows.toRow(provider);
  await trx.updateTable('providers').set(columns).where('id', '=', id).execute();
  return provider;
};

/** One that is there and was not changed follows; one that is new to this store comes; what a person changed or removed stays so. */
const seedOne = async (trx: Trx, { since, ...body }: ShippedProvider, known: number): Promise<void> => {
  const row = await trx.selectFrom('providers').selectAll().where('name', '=', body.name).executeTakeFirst();
  const there = row && rows.fromRow(row);
  if (there === undefined && since > known) {
    await insert(trx, { ...body, is_default: body.is_default && !(await hasDefault(trx, body.kind)) });
    return;
  }
  if (there?.shipped !== true || there.kind !== body.kind) return;
  const { id, is_default, created_at_ms, updated_at_ms } = there;
  const next = { ...body, id, is_default, created_at_ms, updated_at_ms };
  if (!isDeepStrictEqual(next, there)) await save(trx, { ...next, updated_at_ms: body.updated_at_ms });
};

const seed = async (trx: Trx, shipped: readonly ShippedProvider[]): Promise<void> => {
  const note = await trx.selectFrom('notes').select('value').where('name', '=', SEEDED).executeTakeFirst();
  const known = Number(note?.value ?? 0);
  for (const provider of shipped) await seedOne(trx, provider, known);
  const newest = Math.max(known, ...shipped.map(s => s.since));
  if (newest === known) return;
  const value = String(newest);
  await trx
    .insertInto('notes')
    .values({ name: SEEDED, value })
    .onConflict(conflict => conflict.column('name').doUpdateSet({ value }))
    .execute();
};

export const providerStore = (db: Db): ProviderStore => ({
  seedProviders: shipped => db.transaction().execute(trx => seed(trx, shipped)),

  insertProvider: provider => db.transaction().execute(trx => insert(trx, provider)),

  findProvider: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'name';
    const row = await db.selectFrom('providers').selectAll().where(key, '=', ref).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listProviders: async kind => {
    const query = db.selectFrom('providers').selectAll().orderBy('kind').orderBy('is_default', 'desc').orderBy('name');
    return (await (kind === undefined ? query : query.where('kind', '=', kind)).execute()).map(rows.fromRow);
  },

  updateProvider: (id, change) =>
    db.transaction().execute(async trx => save(trx, { ...change(await getProvider(trx, id)), id })),

  setDefaultProvider: id =>
    db.transaction().execute(async trx => {
      const provider = await getProvider(trx, id);
      await trx.updateTable('providers').set({ is_default: 0 }).where('kind', '=', provider.kind).execute();
      return save(trx, { ...provider, is_default: true });
    }),

  removeProvider: id =>
    db.transaction().execute(async trx => {
      const { name, kind, is_default } = await getProvider(trx, id);
      if (is_default)
        throw new Fault('in_use', `Cannot remove provider '${name}': it is the default of its kind, ${kind}.`, {
          hint: 'nexusctl provider set-default another',
        });
      await trx.deleteFrom('providers').where('id', '=', id).execute();
    }),
});
