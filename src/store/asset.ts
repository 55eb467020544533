/** Assets: kernels and root file system archives. A version may be there more than once (a rebuilt package); the newest counts. */
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Kernel } from '../api/kernel.ts';
import { Rootfs } from '../api/rootfs.ts';
import { codec, type Db, none, unlessTaken } from './sqlite.ts';
import type { AssetStore } from './store.ts';

const kernels = codec('kernel', Kernel);
const archives = codec('rootfs', Rootfs);

const newestKernels = (db: Db) =>
  db.selectFrom('kernels').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
const newestRootfs = (db: Db) =>
  db.selectFrom('rootfs').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');

export const assetStore = (db: Db): AssetStore => ({
  insertKernel: kernel =>
    db.transaction().execute(async trx => {
      let same = newestKernels(trx).where('version', '=', kernel.version).where('arch', '=', kernel.arch);
      for (const hash of ['sha256', 'modules_sha256'] as const) same = same.where(hash, '=', kernel[hash]);
      const found = await same.executeTakeFirst();
      if (found !== undefined) return kernels.fromRow(found);
      const row = kernels.toRow(kernel);
      await unlessTaken(`Kernel '${kernel.id}'`, () => trx.insertInto('kernels').values(row).execute());
      return kernel;
    }),

  findKernel: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'version';
    const row = await newestKernels(db).where(key, '=', ref).executeTakeFirst();
    return row && kernels.fromRow(row);
  },

  listKernels: async () => (await newestKernels(db).execute()).map(kernels.fromRow),

  removeKernel: id =>
    db.transaction().execute(async trx => {
      const kernel = await trx.selectFrom('kernels').select('version').where('id', '=', id).executeTakeFirst();
      if (kernel === undefined) throw none('kernel', id);
      const vm = await trx.selectFrom('vms').select('name').where('kernel_id', '=', id).executeTakeFirst();
      if (vm !== undefined)
        throw new Fault('in_use', `Cannot remove kernel '${kernel.version}': VM '${vm.name}' uses it.`);
      await trx.deleteFrom('kernels').where('id', '=', id).execute();
    }),

  insertRootfs: async rootfs => {
    const row = archives.toRow(rootfs);
    await unlessTaken(`Rootfs '${rootfs.id}'`, () => db.insertInto('rootfs').values(row).execute());
  },

  findRootfs: async ref => {
    const colon = ref.indexOf(':');
    if (!ID_PATTERN.test(ref) && colon < 0) return undefined;
    const query = ID_PATTERN.test(ref)
      ? newestRootfs(db).where('id', '=', ref)
      : newestRootfs(db)
          .where('distro', '=', ref.slice(0, colon))
          .where('version', '=', ref.slice(colon + 1));
    const row = await query.executeTakeFirst();
    return row && archives.fromRow(row);
  },

  listRootfs: async () => (await newestRootfs(db).execute()).map(archives.fromRow),

  removeRootfs: async id => {
    const { numDeletedRows } = await db.deleteFrom('rootfs').where('id', '=', id).executeTakeFirst();
    if (numDeletedRows === 0n) throw none('rootfs', id);
  },
});
