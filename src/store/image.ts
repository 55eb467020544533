/** Images: read-only masters; one that a workspace came from stays. */
import type { Transaction } from 'kysely';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Image } from '../api/image.ts';
import { forgetDisk, noteDisk } from './note.ts';
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
  await forgetDisk(trx, image.id);
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

/** By its ID or name, or by those of its template: then the newest. */
export const findImage = async (db: Db, ref: string): Promise<Image | undefined> => {
  const key = ID_PATTERN.test(ref) ? 'id' : 'name';
  const row = await db.selectFrom('images').selectAll().where(key, '=', ref).executeTakeFirst();
  const found = row ?? (await newestOf(db, key, ref));
  return found && rows.fromRow(found);
};

/** Those that were built from templates, the newest of each first. */
const imagesOf = (db: Db) =>
  db
    .selectFrom('builds')
    .innerJoin('images', 'images.build_id', 'builds.id')
    .select(['images.id', 'builds.template_id', 'builds.template'])
    .where('builds.template_id', 'is not', null)
    .orderBy('builds.template_version', 'desc')
    .orderBy('images.created_at_ms', 'desc')
    .orderBy('images.id', 'desc');

/** What keeps an image from being removed; undefined: nothing. */
const needOf = async (db: Db, id: string): Promise<string | undefined> => {
  const ws = await db.selectFrom('workspaces').select('name').where('image_id', '=', id).executeTakeFirst();
  if (ws !== undefined) return `workspace '${ws.name}' came from it`;
  const on_images = db.selectFrom('templates').select(['name', 'source']).where('source_type', '=', 'image');
  for (const template of await on_images.execute())
    if ((await findImage(db, template.source))?.id === id) return `template '${template.name}' builds on it`;
  return undefined;
};

/** Whether the template that it was built from has a newer one. */
const isOutdated = async (db: Db, id: string): Promise<boolean> => {
  const build = db
    .selectFrom('builds')
    .innerJoin('images', 'images.build_id', 'builds.id')
    .select('builds.template_id');
  const template = (await build.where('images.id', '=', id).executeTakeFirst())?.template_id;
  return (
    template != null && (await imagesOf(db).where('builds.template_id', '=', template).executeTakeFirst())?.id !== id
  );
};

const remove = async (trx: Transaction<Tables>, id: string, only: { outdated?: boolean }): Promise<void> => {
  const image = await trx.selectFrom('images').select('name').where('id', '=', id).executeTakeFirst();
  if (image === undefined) throw none('image', id);
  const newest = only.outdated === true && !(await isOutdated(trx, id));
  const why = newest ? 'no image of its template is newer' : await needOf(trx, id);
  if (why !== undefined) throw new Fault('in_use', `Cannot remove image '${image.name}': ${why}.`);
  await trx.deleteFrom('images').where('id', '=', id).execute();
  await noteDisk(trx, id);
};

const ofTemplates = async (db: Db): ReturnType<ImageStore['imagesOfTemplates']> => {
  const found = [];
  for (const { id, template_id, template } of await imagesOf(db).execute()) {
    const image = await findImage(db, id);
    if (image !== undefined && template_id !== null) found.push({ image, template_id, template: template ?? '' });
  }
  return found;
};

export const imageStore = (db: Db): ImageStore => ({
  insertImage: image => db.transaction().execute(trx => insertImage(trx, image)),
  findImage: ref => findImage(db, ref),
  listImages: async () => {
    const query = db.selectFrom('images').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
    return (await query.execute()).map(rows.fromRow);
  },
  imagesOfTemplates: () => ofTemplates(db),
  imageIsNeeded: async id => (await needOf(db, id)) !== undefined,
  removeImage: (id, only = {}) => db.transaction().execute(trx => remove(trx, id, only)),
});
