/** Workspaces: what is attached to which VM. `vms.root_ws_id`, `vms.image_id` and the root workspace's `vm_id` change together, here. */
import { type RawBuilder, sql, type Transaction } from 'kysely';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { MAX_DATA_DISKS, Workspace } from '../api/ws.ts';
import { forgetDisk, noteDisk } from './note.ts';
import { codec, type Db, none, type Tables, unlessTaken } from './sqlite.ts';
import type { Attachment, WorkspaceStore } from './store.ts';

type Trx = Transaction<Tables>;
const rows = codec('workspace', Workspace);

const getWs = async (db: Db, id: string): Promise<Workspace> => {
  const row = await db.selectFrom('workspaces').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('workspace', id);
  return rows.fromRow(row);
};

const vmOf = async (db: Db, id: string) => {
  const vm = await db.selectFrom('vms').select(['name', 'root_ws_id']).where('id', '=', id).executeTakeFirst();
  if (vm === undefined) throw none('VM', id);
  return vm;
};

const saveWs = async (trx: Trx, ws: Workspace): Promise<Workspace> => {
  await trx.updateTable('workspaces').set(rows.toRow(ws)).where('id', '=', ws.id).execute();
  return ws;
};

/** What it is to no VM. */
const ALONE = { vm_id: null, role: null, position: null, mount: null, read_only: false, owned: false } as const;

/** The place after the data disks that the VM has. */
const nextPlace = async (trx: Trx, vm_id: string): Promise<number> => {
  const taken = await trx.selectFrom('workspaces').select('id').where('vm_id', '=', vm_id).where('role', '=', 'data');
  return (await taken.execute()).length + 1;
};

const refuseRoot = async (trx: Trx, ws: Workspace, vm: { name: string; root_ws_id: string | null }): Promise<void> => {
  if (vm.root_ws_id === null) return;
  const root = await getWs(trx, vm.root_ws_id);
  throw new Fault(
    'in_use',
    `Cannot attach workspace '${ws.name}' as root: VM '${vm.name}' has '${root.name}' as root.`,
  );
};

/** Attaches; an `owned` workspace goes when its VM is deleted. */
export const attach = async (trx: Trx, id: string, vm_id: string, how: Attachment): Promise<Workspace> => {
  const { role, mount = null, read_only = false, owned = false } = how;
  const ws = await getWs(trx, id);
  const refuse = (why: string, code: 'in_use' | 'invalid' = 'in_use') =>
    new Fault(code, `Cannot attach workspace '${ws.name}': ${why}.`);
  if (ws.vm_id !== null) throw refuse(`it is attached to VM '${(await vmOf(trx, ws.vm_id)).name}'`);
  const vm = await vmOf(trx, vm_id);
  if (role === 'root') {
    await refuseRoot(trx, ws, vm);
    await trx.updateTable('vms').set({ root_ws_id: id, image_id: ws.image_id }).where('id', '=', vm_id).execute();
    return saveWs(trx, { ...ws, ...ALONE, vm_id, role, position: 0, owned });
  }
  const position = await nextPlace(trx, vm_id);
  if (position > MAX_DATA_DISKS)
    throw refuse(`VM '${vm.name}' has ${MAX_DATA_DISKS} data disks, and more it cannot have`, 'invalid');
  const there = (await wsOfVm(trx, vm_id)).find(other => mount !== null && other.mount === mount);
  if (there !== undefined) throw refuse(`VM '${vm.name}' has '${there.name}' at ${mount}`);
  return saveWs(trx, { ...ws, vm_id, role, position, mount, read_only, owned });
};

/** Detaches a workspace that is attached. What was attached after it moves up. */
export const detach = async (trx: Trx, ws: Workspace): Promise<Workspace> => {
  if (ws.vm_id !== null && ws.role === 'root')
    await trx.updateTable('vms').set({ root_ws_id: null, image_id: null }).where('id', '=', ws.vm_id).execute();
  const alone = await saveWs(trx, { ...ws, ...ALONE });
  if (ws.vm_id !== null && ws.role === 'data')
    for (const other of await wsOfVm(trx, ws.vm_id)) // one by one and in order: no two have a place at any moment
      if (other.position !== null && ws.position !== null && other.position > ws.position)
        await saveWs(trx, { ...other, position: other.position - 1 });
  return alone;
};

/** Inserts, and attaches where the record says so. */
export const insert = async (trx: Trx, ws: Workspace): Promise<void> => {
  if (ws.image_id !== null) {
    const image = await trx.selectFrom('images').select('id').where('id', '=', ws.image_id).executeTakeFirst();
    if (image === undefined) throw none('image', ws.image_id);
  }
  const row = rows.toRow({ ...ws, ...ALONE });
  await unlessTaken(`Workspace '${ws.name}'`, () => trx.insertInto('workspaces').values(row).execute());
  const { id: ws_id, source_ws_id } = ws;
  if (source_ws_id !== null)
    await trx
      .insertInto('ws_lines')
      .values({ ws_id, source_ws_id })
      .onConflict(oc => oc.doNothing())
      .execute();
  await forgetDisk(trx, ws.id);
  if (ws.vm_id === null) return;
  const { role, mount, read_only, owned } = ws;
  await attach(trx, ws.id, ws.vm_id, { role: role ?? 'data', mount, read_only, owned });
};

/** The workspaces for which `where` holds, and those they come from. */
const lines = (where: RawBuilder<boolean>) => sql<{ id: string }>`
  with recursive line (id) as (
    select id from workspaces where ${where}
    union select source_ws_id from ws_lines join line on ws_id = line.id
  ) select id from line`;

export const removeRow = async (trx: Trx, id: string): Promise<void> => {
  await trx.deleteFrom('workspaces').where('id', '=', id).execute();
  await sql`delete from ws_lines where ws_id not in (${lines(sql`true`)})`.execute(trx);
  await noteDisk(trx, id);
};

/** In the order of the disks: the root, then as they were attached. */
export const wsOfVm = async (db: Db, vm_id: string): Promise<Workspace[]> => {
  const found = await db.selectFrom('workspaces').selectAll().where('vm_id', '=', vm_id).orderBy('position').execute();
  return found.map(rows.fromRow);
};

export const wsStore = (db: Db): WorkspaceStore => ({
  insertWs: ws => db.transaction().execute(trx => insert(trx, ws)),

  findWs: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'name';
    const row = await db.selectFrom('workspaces').selectAll().where(key, '=', ref).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listWs: async (filter = {}) => {
    let query = db.selectFrom('workspaces').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
    if (filter.image_id !== undefined) query = query.where('image_id', '=', filter.image_id);
    return (await query.execute()).map(rows.fromRow);
  },

  lineOf: async id => (await lines(sql`id = ${id}`).execute(db)).rows.map(row => row.id),

  wsOfVm: vm_id => wsOfVm(db, vm_id),

  attachWs: (id, vm_id, how) => db.transaction().execute(trx => attach(trx, id, vm_id, how)),

  resizeWs: (id, size_bytes) =>
    db.transaction().execute(async trx => saveWs(trx, { ...(await getWs(trx, id)), size_bytes })),

  detachWs: id =>
    db.transaction().execute(async trx => {
      const ws = await getWs(trx, id);
      if (ws.vm_id === null) throw new Fault('bad_state', `Cannot detach workspace '${ws.name}': it is not attached.`);
      return detach(trx, ws);
    }),

  removeWs: id =>
    db.transaction().execute(async trx => {
      const ws = await getWs(trx, id);
      if (ws.vm_id !== null) {
        const vm = await vmOf(trx, ws.vm_id);
        throw new Fault('in_use', `Cannot remove workspace '${ws.name}': it is attached to VM '${vm.name}'.`);
      }
      await removeRow(trx, id);
    }),
});
