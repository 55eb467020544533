/** Assets: kernels, root file system archives and Firecrackers, one way for all three. */
import { sql } from 'kysely';
import type { AssetKind } from '../api/asset.ts';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Firecracker } from '../api/firecracker.ts';
import { Kernel } from '../api/kernel.ts';
import type { Proof } from '../api/pipeline.ts';
import { Rootfs } from '../api/rootfs.ts';
import { hostArch } from '../lib/arch.ts';
import { findImage } from './image.ts';
import { type Codec, codec, type Db, none, type Row, unlessTaken } from './sqlite.ts';
import type { AssetOf, AssetStore, AssetTable } from './store.ts';

/** What is different about one kind. */
interface Sort<A> {
  kind: AssetKind;
  table: 'kernels' | 'rootfs' | 'firecrackers';
  rows: Codec<A>;
  /** As people call it, such as kernel '6.12'. */
  name(asset: A): string;
  /** What makes two of them one: name and content. */
  same(asset: A): Record<string, string | null>;
  /** What needs it, such as VM 'web'. */
  usedBy?(db: Db, asset: A): Promise<string | undefined>;
}

const vmName = (vm: { name: string } | undefined): string | undefined => vm && `VM '${vm.name}'`;

const KERNELS: Sort<Kernel> = {
  kind: 'kernel',
  table: 'kernels',
  rows: codec('kernel', Kernel),
  name: a => `kernel '${a.version}'`,
  same: ({ version, arch, sha256, modules_sha256 }) => ({ version, arch, sha256, modules_sha256 }),
  usedBy: async (db, { id }) =>
    vmName(
      await db
        .selectFrom('vms')
        .select('name')
        .where(eb => eb.or([eb('kernel_id', '=', id), eb(sql`run ->> 'kernel_id'`, '=', id)]))
        .executeTakeFirst(),
    ),
};

const ROOTFS: Sort<Rootfs> = {
  kind: 'rootfs',
  table: 'rootfs',
  rows: codec('rootfs', Rootfs),
  name: a => `archive '${a.distro}:${a.version}'`,
  same: ({ distro, version, arch, sha256 }) => ({ distro, version, arch, sha256 }),
  usedBy: async (db, { id }) => {
    const named = await db.selectFrom('templates').select(['name', 'source', 'source_type']).execute();
    const all = (await newest(db, ROOTFS).execute()) as unknown as Pick<Rootfs, 'id' | 'distro' | 'version' | 'arch'>[];
    for (const { name, source, source_type } of named) {
      const on_top = source_type === 'image' ? (await findImage(db, source))?.rootfs_id : undefined;
      const found = source_type === 'image' || source === id ? (on_top ?? source) : byName('rootfs', all, source)?.id;
      if (found === id) return `template '${name}'`;
    }
    return undefined;
  },
};

const FIRECRACKERS: Sort<Firecracker> = {
  kind: 'firecracker',
  table: 'firecrackers',
  rows: codec('Firecracker', Firecracker),
  name: a => `Firecracker '${a.version}'`,
  same: ({ version, arch, sha256, jailer_sha256 }) => ({ version, arch, sha256, jailer_sha256 }),
  usedBy: async (db, { id }) =>
    vmName(await db.selectFrom('vms').select('name').where(sql`run ->> 'firecracker_id'`, '=', id).executeTakeFirst()),
};

const newest = (db: Db, { table }: Pick<Sort<unknown>, 'table'>) =>
  db.selectFrom(table).selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');

/** The version of a reference; for root file systems the distro and, if it is named, the version. */
const partsOf = (kind: AssetKind, ref: string): { version?: string; distro?: string } => {
  if (kind !== 'rootfs') return { version: ref };
  const colon = ref.indexOf(':');
  return colon < 0 ? { distro: ref } : { distro: ref.slice(0, colon), version: ref.slice(colon + 1) };
};

/** Of assets, the newest first: that of the version, or the newest of the series or the distro; those for this processor before others. */
const byName = <A extends { version: string; arch: string }>(
  kind: AssetKind,
  all: readonly A[],
  ref: string,
): A | undefined => {
  const { version, distro } = partsOf(kind, ref);
  const { own = [], other = [] } = Object.groupBy(
    all.filter(one => !('distro' in one) || one.distro === distro),
    one => (one.arch === hostArch() ? 'own' : 'other'),
  );
  const named = [...own, ...other];
  if (version === undefined) return named[0];
  return named.find(one => one.version === version) ?? named.find(one => one.version.startsWith(`${version}.`));
};

/** How much it takes to fake it: nothing, the file and the hash beside it, a signing key. */
const strength = (proofs: readonly Proof[]): number => {
  if (proofs.some(proof => proof === 'pgp' || proof === 'apt')) return 2;
  return proofs.includes('sha256') ? 1 : 0;
};

type Origin = Pick<AssetOf[AssetKind], 'provider' | 'source' | 'proofs' | 'created_at_ms'>;

/** The same content came again: what proves it better, or as well and from a provider, is what the record says from now on. */
const provenBy = (kept: Origin, { provider, source, proofs, created_at_ms }: Origin): Partial<Origin> => {
  const better = strength(proofs) - strength(kept.proofs);
  return better > 0 || (better === 0 && provider !== null) ? { provider, source, proofs, created_at_ms } : {};
};

const table = <A extends AssetOf[AssetKind]>(db: Db, sort: Sort<A>): AssetTable<A> => {
  const { rows } = sort;
  // the table and its codec belong together, which TypeScript cannot follow through the generic
  const read = (row: object | undefined): A | undefined => row && rows.fromRow(row as Row<A>);
  const all = async (on: Db) => (await newest(on, sort).execute()).map(row => rows.fromRow(row as unknown as Row<A>));
  const need = async (on: Db, id: string): Promise<A> => {
    const found = read(await newest(on, sort).where('id', '=', id).executeTakeFirst());
    if (found === undefined) throw none(sort.kind, id);
    return found;
  };
  return {
    insert: asset =>
      db.transaction().execute(async trx => {
        const same = Object.entries(sort.same(asset));
        const found = (await all(trx)).find(one => same.every(([key, value]) => Reflect.get(one, key) === value));
        if (found !== undefined) {
          const now = { ...found, ...provenBy(found, asset) };
          const columns = rows.toRow(now) as never;
          await trx.updateTable(sort.table).set(columns).where('id', '=', found.id).execute();
          return now;
        }
        const row = rows.toRow(asset) as never;
        await unlessTaken(`${sort.kind} '${asset.id}'`, () => trx.insertInto(sort.table).values(row).execute());
        return asset;
      }),

    find: async ref => {
      if (ID_PATTERN.test(ref)) return read(await newest(db, sort).where('id', '=', ref).executeTakeFirst());
      return byName(sort.kind, await all(db), ref);
    },

    list: () => all(db),

    remove: id =>
      db.transaction().execute(async trx => {
        const asset = await need(trx, id);
        const refuse = (why: string, hint?: string) =>
          new Fault('in_use', `Cannot remove ${sort.name(asset)}: ${why}.`, { hint });
        const user = await sort.usedBy?.(trx, asset);
        if (user !== undefined) throw refuse(`${user} uses it`);
        if (asset.is_default) throw refuse('it is the default', `nexusctl ${sort.kind} set-default --off ${id}`);
        await trx.deleteFrom(sort.table).where('id', '=', id).execute();
      }),

    setDefault: (id, on) =>
      db.transaction().execute(async trx => {
        const asset = await need(trx, id);
        if (on) await trx.updateTable(sort.table).set({ is_default: 0 }).where('is_default', '=', 1).execute();
        await trx
          .updateTable(sort.table)
          .set({ is_default: Number(on) })
          .where('id', '=', id)
          .execute();
        return { ...asset, is_default: on };
      }),
  };
};

export const assetStore = (db: Db): AssetStore => ({
  kernel: table(db, KERNELS),
  rootfs: table(db, ROOTFS),
  firecracker: table(db, FIRECRACKERS),
});
