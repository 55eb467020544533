/** Builds. Each has a copy of what its template said; one whose image is there stays, for images are built on it. */
import { Build } from '../api/build.ts';
import { ID_PATTERN } from '../api/common.ts';
import { insertImage } from './image.ts';
import { codec, type Db, none, unlessTaken } from './sqlite.ts';
import type { BuildFilter, BuildStore } from './store.ts';

const rows = codec('build', Build);

const getBuild = async (db: Db, id: string): Promise<Build> => {
  const row = await db.selectFrom('builds').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('build', id);
  return rows.fromRow(row);
};

const patch = async (db: Db, id: string, changes: Partial<Build>): Promise<Build> => {
  const next = { ...(await getBuild(db, id)), ...changes, id };
  await db.updateTable('builds').set(rows.toRow(next)).where('id', '=', id).execute();
  return next;
};

const newest = (db: Db) => db.selectFrom('builds').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');

/** The newest of a template that is there, or was. */
const newestOf = async (db: Db, ref: string): Promise<Build | undefined> => {
  const row = await newest(db)
    .where(ID_PATTERN.test(ref) ? 'template_id' : 'template', '=', ref)
    .limit(1)
    .executeTakeFirst();
  return row && rows.fromRow(row);
};

const list = async (db: Db, { template_id, state, limit }: BuildFilter): Promise<Build[]> => {
  let query = newest(db);
  if (template_id !== undefined) query = query.where('template_id', '=', template_id);
  if (state !== undefined) query = query.where('state', '=', state);
  return (await query.limit(limit).execute()).map(rows.fromRow);
};

const INTERRUPTED = {
  code: 'canceled' as const,
  detail: 'The build was interrupted: the daemon ended before it did.',
  hint: 'Trigger it again.',
};

export const buildStore = (db: Db): BuildStore => ({
  insertBuild: async build => {
    const row = rows.toRow(build);
    await unlessTaken(`Build '${build.id}'`, () => db.insertInto('builds').values(row).execute());
  },

  findBuild: async ref => {
    const row = await db.selectFrom('builds').selectAll().where('id', '=', ref).executeTakeFirst();
    return row === undefined ? newestOf(db, ref) : rows.fromRow(row);
  },

  listBuilds: filter => list(db, filter),

  patchBuild: (id, changes) => db.transaction().execute(trx => patch(trx, id, changes)),

  finishBuild: (id, image, inputs_sha256, at_ms) =>
    db.transaction().execute(async trx => {
      await insertImage(trx, image);
      const made = { image_id: image.id, image_sha256: image.sha256, inputs_sha256 };
      await patch(trx, id, { state: 'success', ...made, ended_at_ms: at_ms });
    }),

  endBuild: (id, end) =>
    db.transaction().execute(async trx => {
      if ((await getBuild(trx, id)).state === 'building') await patch(trx, id, end);
    }),

  interruptBuilds: at_ms =>
    db.transaction().execute(async trx => {
      const open = await trx.selectFrom('builds').select('id').where('state', '=', 'building').execute();
      for (const { id } of open) await patch(trx, id, { state: 'failed', error: INTERRUPTED, ended_at_ms: at_ms });
      return open.map(build => build.id);
    }),

  pruneBuilds: keep =>
    db.transaction().execute(async trx => {
      const ended = await newest(trx)
        .clearSelect()
        .select('id')
        .where('state', '!=', 'building')
        .where(
          'id',
          'not in',
          trx.selectFrom('images').select('build_id').$castTo<{ build_id: string }>().where('build_id', 'is not', null),
        )
        .execute();
      for (const { id } of ended.slice(keep)) await trx.deleteFrom('builds').where('id', '=', id).execute();
    }),

  removeBuild: async id => {
    await db.deleteFrom('builds').where('id', '=', id).execute();
  },
});
