/** Workspaces: what is attached to which VM. `vms.root_ws_id` and the root workspace's `vm_id` change together, here. */
import type { Transaction } from 'kysely';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { Workspace } from '../api/ws.ts';
import { codec, type Db, none, type Tables, unlessTaken } from './sqlite.ts';
import type { WorkspaceStore } from './store.ts';

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

/** Attaches; an `owned` workspace goes when its VM is deleted. */
export const attach = async (
  trx: Trx,
  id: string,
  vm_id: string,
  role: 'root' | 'data',
  owned: boolean,
): Promise<Workspace> => {
  const ws = await getWs(trx, id);
  if (ws.vm_id !== null) {
    const other = await vmOf(trx, ws.vm_id);
    throw new Fault('in_use', `Cannot attach workspace '${ws.name}': it is attached to VM '${other.name}'.`);
  }
  const vm = await vmOf(trx, vm_id);
  if (role === 'root') {
    if (vm.root_ws_id !== null) {
      const root = await getWs(trx, vm.root_ws_id);
      throw new Fault(
        'in_use',
        `Cannot attach workspace '${ws.name}' as root: VM '${vm.name}' has '${root.name}' as root.`,
      );
    }
    await trx.updateTable('vms').set({ root_ws_id: id }).where('id', '=', vm_id).execute();
  }
  return saveWs(trx, { ...ws, vm_id, role, owned });
};

/** Detaches a workspace that is attached. */
export const detach = async (trx: Trx, ws: Workspace): Promise<Workspace> => {
  if (ws.vm_id !== null && ws.role === 'root')
    await trx.updateTable('vms').set({ root_ws_id: null }).where('id', '=', ws.vm_id).execute();
  return saveWs(trx, { ...ws, vm_id: null, role: null, owned: false });
};

/** Inserts, and attaches where the record says so. */
export const insert = async (trx: Trx, ws: Workspace): Promise<void> => {
  if (ws.image_id !== null) {
    const image = await trx.selectFrom('images').select('id').where('id', '=', ws.image_id).executeTakeFirst();
    if (image === undefined) throw none('image', ws.image_id);
  }
  const row = rows.toRow({ ...ws, vm_id: null, role: null, owned: false });
  await unlessTaken(`Workspace '${ws.name}'`, () => trx.insertInto('workspaces').values(row).execute());
  if (ws.vm_id !== null) await attach(trx, ws.id, ws.vm_id, ws.role ?? 'data', ws.owned);
};

export const wsOfVm = async (db: Db, vm_id: string): Promise<Workspace[]> => {
  const found = await db.selectFrom('workspaces').selectAll().where('vm_id', '=', vm_id).orderBy('id').execute();
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
    if (filter.vm_id !== undefined) query = query.where('vm_id', '=', filter.vm_id);
    if (filter.image_id !== undefined) query = query.where('image_id', '=', filter.image_id);
    return (await query.execute()).map(rows.fromRow);
  },

  attachWs: (id, vm_id, role) => db.transaction().execute(trx => attach(trx, id, vm_id, role, false)),

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
      await trx.deleteFrom('workspaces').where('id', '=', id).execute();
    }),
});
