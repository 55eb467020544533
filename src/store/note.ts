/** What the daemon remembers of itself: short texts by name. */
import { type Db, unsynced } from './sqlite.ts';
import type { NoteStore } from './store.ts';

const DISK = 'disk:';

/** In the transaction that removes the record of a disk. */
export const noteDisk = async (db: Db, id: string): Promise<void> => {
  const values = { name: DISK + id, value: 'a leftover, unless it has a record' };
  await db
    .insertInto('notes')
    .values(values)
    .onConflict(conflict => conflict.doNothing())
    .execute();
};

/** In the transaction that makes the record of a disk. */
export const forgetDisk = async (db: Db, id: string): Promise<void> => {
  await db
    .deleteFrom('notes')
    .where('name', '=', DISK + id)
    .execute();
};

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

  noteDisk: id => unsynced(db, own => noteDisk(own, id)),
  forgetDisk: id => unsynced(db, own => forgetDisk(own, id)),
  notedDisks: async () => {
    const found = await db.selectFrom('notes').select('name').where('name', 'like', `${DISK}%`).execute();
    return found.map(({ name }) => name.slice(DISK.length));
  },
});
