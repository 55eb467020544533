/** What the daemon remembers of itself: short texts by name. */
import type { Db } from './sqlite.ts';
import type { NoteStore } from './store.ts';

export const noteStore = (db: Db): NoteStore => ({
  findNote: async name =>
    (await db.selectFrom('notes').select('value').where('name', '=', name).executeTakeFirst())?.value,

  writeNote: async (name, value) => {
    const update = { value };
    await db
      .insertInto('notes')
      .values({ name, value })
      .onConflict(conflict => conflict.column('name').doUpdateSet(update))
      .execute();
  },
});
