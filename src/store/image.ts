/** Images: read-only masters; one that a workspace came from stays. */
import type { Transaction } from 'kysely';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Image } from '../api/image.ts';
import { codec, type Db, none, type Tables, unlessTaken } from './sqlite.ts';
import type { ImageStore } from './store.ts';

const rows = codec('image', Image);

export const insertImage = async (trx: Transaction<Tables>, image: Image): Promise<void> => {
  const { name } = image;
  if ((await trx.selectFrom('templates').select('id').where('name', '=', name).executeTakeFirst()) !== undefined)
    throw new Fault('exists', `Cannot make image '${name}': a template has that name.`, {
      hint: 'where an image is meant, both are named: choose another name',
    });
  const row = rows.toRow(image);
  await unlessTaken(`Image '${name}'`, () => trx.insertInto('images').values(row).execute());
};

/** The newest image of a template. A slow build of an old version is none. */
const newestOf = (db: Db, key: 'id' | 'name', ref: string) =>
  db
    .selectFrom('images')
    .innerJoin('builds', 'builds.id', 'images.build_id')
    .innerJoin('templates', 'templates.id', 'builds.template_id')
    .selectAll('images')
    .where(`templates.${key}`, '=', ref)
    .orderBy('builds.template_version', 'desc')
    .orderBy('images.created_at_ms', 'desc')
    .orderBy('images.id', 'desc')
    .executeTakeFirst();

const find = async (db: Db, ref: string): Promise<Image | undefined> => {
  const key = ID_PATTERN.test(ref) ? 'id' : 'name';
  const row = await db.selectFrom('images').selectAll().where(key, '=', ref).executeTakeFirst();
  const found = row ?? (await newestOf(db, key, ref));
  return found && rows.fromRow(found);
};

/** What keeps an image from being removed; undefined: nothing. */
const needOf = async (db: Db, id: string): Promise<string | undefined> => {
  const ws = await db.selectFrom('workspaces').select('name').where('image_id', '=', id).executeTakeFirst();
  if (ws !== undefined) return `workspace '${ws.name}' came from it`;
  const on_images = db.selectFrom('templates').select(['name', 'source']).where('source_type', '=', 'image');
  for (const template of await on_images.execute())
    if ((await find(db, template.source))?.id === id) return `template '${template.name}' builds on it`;
  return undefined;
};

const remove = async (trx: Transaction<Tables>, id: string): Promise<void> => {
  const image = await trx.selectFrom('images').select('name').where('id', '=', id).executeTakeFirst();
  if (image === undefined) throw none('image', id);
  const why = await needOf(trx, id);
  if (why !== undefined) throw new Fault('in_use', `Cannot remove image '${image.name}': ${why}.`);
  await trx.deleteFrom('images').where('id', '=', id).execute();
};

const ofTemplates = async (db: Db): ReturnType<ImageStore['imagesOfTemplates']> => {
  const builds = db
    .selectFrom('builds')
    .innerJoin('images', 'images.build_id', 'builds.id')
    .select(['images.id', 'builds.template_id', 'builds.template'])
    .where('builds.template_id', 'is not', null)
    .orderBy('builds.template_version', 'desc')
    .orderBy('images.created_at_ms', 'desc')
    .orderBy('images.id', 'desc');
  const found = [];
  for (const { id, template_id, template } of await builds.execute()) {
    const image = await find(db, id);
    if (image !== undefined && template_id !== null) found.push({ image, template_id, template: template ?? '' });
  }
  return found;
};

export const imageStore = (db: Db): ImageStore => ({
  insertImage: image => db.transaction().execute(trx => insertImage(trx, image)),
  findImage: ref => find(db, ref),
  listImages: async () => {
    const query = db.selectFrom('images').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
    return (await query.execute()).map(rows.fromRow);
  },
  imagesOfTemplates: () => ofTemplates(db),
  imageIsNeeded: async id => (await needOf(db, id)) !== undefined,
  removeImage: id => db.transaction().execute(trx => remove(trx, id)),
});
