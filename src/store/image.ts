/** Images: read-only masters; one that a workspace came from stays. */
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Image } from '../api/image.ts';
import { codec, type Db, none, unlessTaken } from './sqlite.ts';
import type { ImageStore } from './store.ts';

const rows = codec('image', Image);

export const imageStore = (db: Db): ImageStore => ({
  insertImage: async image => {
    const row = rows.toRow(image);
    await unlessTaken(`Image '${image.name}'`, () => db.insertInto('images').values(row).execute());
  },

  findImage: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'name';
    const row = await db.selectFrom('images').selectAll().where(key, '=', ref).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listImages: async () => {
    const found = await db
      .selectFrom('images')
      .selectAll()
      .orderBy('created_at_ms', 'desc')
      .orderBy('id', 'desc')
      .execute();
    return found.map(rows.fromRow);
  },

  removeImage: id =>
    db.transaction().execute(async trx => {
      const image = await trx.selectFrom('images').select('name').where('id', '=', id).executeTakeFirst();
      if (image === undefined) throw none('image', id);
      const ws = await trx.selectFrom('workspaces').select('name').where('image_id', '=', id).executeTakeFirst();
      if (ws !== undefined)
        throw new Fault('in_use', `Cannot remove image '${image.name}': workspace '${ws.name}' came from it.`);
      await trx.deleteFrom('images').where('id', '=', id).execute();
    }),
});
