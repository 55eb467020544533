/** VMs and their history. Every state is written by `transitionVm` (and the first by `insertVm`), with its history row. */
import type { Transaction } from 'kysely';
import { z } from 'zod';
import { ID_PATTERN } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { GivenFile } from '../api/provision.ts';
import { Vm, VmHistoryEntry } from '../api/vm.ts';
import { VM_TRANSITIONS, type VmState } from '../api/vm_state.ts';
import { codec, type Db, none, type Tables, unlessTaken, unsynced } from './sqlite.ts';
import type { Transition, VmPatch, VmRecord, VmStore } from './store.ts';
import { attach, detach, insert, removeRow, wsOfVm } from './ws.ts';

type Trx = Transaction<Tables>;

const VmRun = z.strictObject({
  pid: z.int(),
  start_ticks: z.int(),
  boot_id: z.string(),
  firecracker_id: z.string().optional(),
  kernel_id: z.string().optional(),
});
const ProvisionRun = z.strictObject({
  ws_id: z.string().nullable(),
  begun: z.strictObject({ at_ms: z.int(), agent_id: z.string() }).nullable(),
});
const rows = codec(
  'VM',
  z.strictObject({
    ...Vm.shape,
    run: VmRun.nullable(),
    host_uid: z.int().nullable(),
    env: z.record(z.string(), z.string()),
    provision_run: ProvisionRun.nullable(),
  }),
);
const provisions = codec(
  'provision',
  z.strictObject({
    files: z.array(GivenFile),
    first_boot: z.string().nullable(),
    first_boot_timeout_ms: z.int(),
  }),
);
const history = codec('history', VmHistoryEntry);

/** What was asked for when a state was to be written, for the sentence that refuses it. */
const DEED: Partial<Record<VmState, string>> = {
  starting: 'start',
  paused: 'pause',
  suspended: 'suspend',
  stopping: 'stop',
};

const refusal = (vm: VmRecord, to: VmState): Fault => {
  const deed = DEED[to];
  const what = deed === undefined ? `record VM '${vm.name}' as ${to}` : `${deed} VM '${vm.name}'`;
  return new Fault('bad_state', `Cannot ${what}: it is ${vm.state}.`);
};

/** A guest that reboots without end must not fill the disk. */
const HISTORY_KEPT = 1000;

const hasTag = (tags: VmRecord['tags'], wanted: string): boolean => {
  const at = wanted.indexOf('=');
  const name = at === -1 ? wanted : wanted.slice(0, at);
  return Object.hasOwn(tags, name) && (at === -1 || tags[name] === wanted.slice(at + 1));
};

const getVm = async (db: Db, id: string): Promise<VmRecord> => {
  const row = await db.selectFrom('vms').selectAll().where('id', '=', id).executeTakeFirst();
  if (row === undefined) throw none('VM', id);
  return rows.fromRow(row);
};

const checkKernel = async (trx: Trx, id: string | null | undefined): Promise<void> => {
  if (id === null || id === undefined) return;
  const kernel = await trx.selectFrom('kernels').select('id').where('id', '=', id).executeTakeFirst();
  if (kernel === undefined) throw none('kernel', id);
};

const addHistory = async (trx: Trx, vm_id: string, entry: VmHistoryEntry): Promise<void> => {
  await trx
    .insertInto('vm_history')
    .values({ vm_id, ...history.toRow(entry) })
    .execute();
  const oldest = trx.selectFrom('vm_history').select('seq').where('vm_id', '=', vm_id).orderBy('seq', 'desc');
  await trx
    .deleteFrom('vm_history')
    .where('vm_id', '=', vm_id)
    .where('seq', '<=', oldest.limit(1).offset(HISTORY_KEPT))
    .execute();
};

/** Writes a patch and a state; gives the record as it then is. Other columns are not touched, nor are their indexes written anew. */
const save = async (trx: Trx, vm: VmRecord, patch: VmPatch, state: VmState): Promise<VmRecord> => {
  await checkKernel(trx, patch.kernel_id);
  const next: VmRecord = {
    ...vm,
    ...patch,
    id: vm.id,
    state,
    root_ws_id: vm.root_ws_id,
    created_at_ms: vm.created_at_ms,
  };
  const row = rows.toRow(next);
  const written = Object.entries(row).filter(([name]) => name === 'state' || name in patch);
  const columns: Partial<typeof row> = Object.fromEntries(written);
  await unlessTaken(`VM '${next.name}'`, () => trx.updateTable('vms').set(columns).where('id', '=', vm.id).execute());
  return next;
};

/** 0 to 2 are the hypervisor, the machine itself and the host (vsock(7)). */
const FIRST_CID = 3;

/** The lowest number from `first` on that no VM has in this column. */
const lowestFree = async (trx: Trx, column: 'host_uid' | 'vsock_cid', first: number): Promise<number> => {
  const used = await trx.selectFrom('vms').select(column).where(column, '>=', first).orderBy(column).execute();
  let free = first;
  for (const row of used) if (row[column] === free) free++;
  return free;
};

const insertVm = async (
  trx: Trx,
  vm: Parameters<VmStore['insertVm']>[0],
  options: Parameters<VmStore['insertVm']>[1],
) => {
  await checkKernel(trx, vm.kernel_id);
  const { first_host_uid: first } = options;
  const host_uid = first === undefined ? null : await lowestFree(trx, 'host_uid', first);
  const vsock_cid = await lowestFree(trx, 'vsock_cid', FIRST_CID);
  const row = rows.toRow({ ...vm, root_ws_id: null, host_uid, vsock_cid });
  await unlessTaken(`VM '${vm.name}'`, () => trx.insertInto('vms').values(row).execute());
  if (options.ws !== undefined) await insert(trx, { ...options.ws, vm_id: vm.id, role: 'root' });
  else if (vm.root_ws_id !== null) await attach(trx, vm.root_ws_id, vm.id, { role: 'root' });
  const { provision } = options;
  if (provision !== undefined)
    await trx
      .insertInto('vm_provisions')
      .values({ vm_id: vm.id, ...provisions.toRow(provision) })
      .execute();
  await addHistory(trx, vm.id, { at_ms: vm.created_at_ms, from: null, to: vm.state, why: 'created', actor: 'api' });
  return getVm(trx, vm.id);
};

const transition = async (trx: Trx, id: string, { to, why, actor, patch = {} }: Transition): Promise<VmRecord> => {
  const vm = await getVm(trx, id);
  if (!VM_TRANSITIONS[vm.state].includes(to)) throw refusal(vm, to);
  await addHistory(trx, id, { at_ms: Date.now(), from: vm.state, to, why, actor });
  return save(trx, vm, patch, to);
};

const patchVm = (db: Db, id: string, patch: VmPatch): Promise<VmRecord> =>
  db.transaction().execute(async trx => {
    const vm = await getVm(trx, id);
    return save(trx, vm, patch, vm.state);
  });

export const vmStore = (db: Db): VmStore => ({
  insertVm: (vm, options) => db.transaction().execute(trx => insertVm(trx, vm, options)),

  findVm: async ref => {
    const key = ID_PATTERN.test(ref) ? 'id' : 'name';
    const row = await db.selectFrom('vms').selectAll().where(key, '=', ref).executeTakeFirst();
    return row && rows.fromRow(row);
  },

  listVms: async (filter = {}) => {
    let query = db.selectFrom('vms').selectAll().orderBy('created_at_ms', 'desc').orderBy('id', 'desc');
    if (filter.state !== undefined) query = query.where('state', '=', filter.state);
    const found = (await query.execute()).map(rows.fromRow);
    return filter.tags === undefined ? found : found.filter(vm => filter.tags?.every(tag => hasTag(vm.tags, tag)));
  },

  findProvision: async vm_id => {
    const columns = ['files', 'first_boot', 'first_boot_timeout_ms'] as const;
    const row = await db.selectFrom('vm_provisions').select(columns).where('vm_id', '=', vm_id).executeTakeFirst();
    return row && provisions.fromRow(row);
  },

  transitionVm: (id, step) => db.transaction().execute(trx => transition(trx, id, step)),

  patchVm: (id, patch) => patchVm(db, id, patch),

  noteVm: (id, patch) => unsynced(db, own => patchVm(own, id, patch)),

  removeVm: (id, { keep_disk }) =>
    db.transaction().execute(async trx => {
      await getVm(trx, id);
      const attached = (await wsOfVm(trx, id)).reverse();
      const removed = keep_disk ? [] : attached.filter(ws => ws.owned);
      for (const ws of attached) await detach(trx, ws);
      for (const ws of removed) await removeRow(trx, ws.id);
      await trx.deleteFrom('vms').where('id', '=', id).execute();
      return removed;
    }),

  vmHistory: async (id, limit) => {
    const found = await db
      .selectFrom('vm_history')
      .select(['at_ms', 'from', 'to', 'why', 'actor'])
      .where('vm_id', '=', id)
      .orderBy('seq', 'desc')
      .limit(limit)
      .execute();
    return found.map(history.fromRow);
  },
});
