/** Jobs: their state, progress and end. Their logs are files, elsewhere. */
import { JOB_ENDED, Job } from '../api/job.ts';
import { codec, type Db, none, unlessTaken } from './sqlite.ts';
import type { JobStore } from './store.ts';

const rows = codec('job', Job);

const getJob = async (db: Db, id: string): Promise<Job> => {
  const row = await db.selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('job', id);
  return rows.fromRow(row);
};

const update = async (db: Db, id: string, patch: Partial<Omit<Job, 'id'>>): Promise<Job> => {
  const next = { ...(await getJob(db, id)), ...patch, id };
  await db.updateTable('jobs').set(rows.toRow(next)).where('id', '=', id).execute();
  return next;
};

const newest = (db: Db) => db.selectFrom('jobs').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');

export const jobStore = (db: Db): JobStore => ({
  insertJob: async job => {
    const row = rows.toRow(job);
    await unlessTaken(`Job '${job.id}'`, () => db.insertInto('jobs').values(row).execute());
  },

  findJob: async id => {
    const row = await db.selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listJobs: async ({ state, limit }) => {
    const query = state === undefined ? newest(db) : newest(db).where('state', '=', state);
    return (await query.limit(limit).execute()).map(rows.fromRow);
  },

  updateJob: (id, patch) => db.transaction().execute(trx => update(trx, id, patch)),

  interruptJobs: at_ms =>
    db.transaction().execute(async trx => {
      const open = await newest(trx).where('state', 'not in', JOB_ENDED).execute();
      const ended: Job[] = [];
      for (const { id } of open) {
        const error = {
          code: 'canceled' as const,
          detail: 'The daemon ended before this job did.',
          hint: 'Start it again.',
        };
        ended.push(await update(trx, id, { state: 'interrupted', ended_at_ms: at_ms, error }));
      }
      return ended;
    }),

  pruneJobs: keep =>
    db.transaction().execute(async trx => {
      const ended = await newest(trx).where('state', 'in', JOB_ENDED).execute();
      const dropped = ended.slice(keep).map(job => job.id);
      for (const id of dropped) await trx.deleteFrom('jobs').where('id', '=', id).execute();
      return dropped;
    }),
});
