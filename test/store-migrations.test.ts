/** Migrations: forward only, all or nothing, with the data and a copy of it. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { MIGRATIONS } from '../src/store/migrations.ts';
import { openStore } from '../src/store/open.ts';

const dataDir = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-migrations-'));
  return { dir, db: join(dir, 'state.db'), [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

const job = {
  id: 'job_01jzz000000000000000000001',
  kind: 'kernel.download',
  subject: 'debian:12',
  state: 'queued' as const,
  progress: null,
  error: null,
  result_id: null,
  created_at_ms: 1,
  started_at_ms: null,
  ended_at_ms: null,
};

const versionOf = (path: string) => {
  const db = new DatabaseSync(path, { readOnly: true });
  try {
    return db.prepare('pragma user_version').get()?.user_version;
  } finally {
    db.close();
  }
};

const newest = MIGRATIONS.at(-1)?.version ?? 0;
const EXTRA = {
  version: newest + 1,
  sql: 'create table extra (id text primary key) strict; insert into extra select id from jobs;',
};

test('the steps are numbered 1, 2, 3 and a fresh database has the last', async () => {
  await using temp = await dataDir();
  assert.deepEqual(
    MIGRATIONS.map(m => m.version),
    MIGRATIONS.map((_, n) => n + 1),
  );
  await (await openStore(temp.dir))[Symbol.asyncDispose]();
  assert.deepEqual(await readdir(temp.dir), ['state.db']);
  assert.equal(versionOf(temp.db), newest);
  const db = new DatabaseSync(temp.db, { readOnly: true });
  const loose = db.prepare(
    "select name from pragma_table_list where schema = 'main' and not strict and name not like 'sqlite_%'",
  );
  assert.deepEqual(loose.all(), []);
  db.close();
});

test('a migration keeps the data and leaves a copy of it as it was', async () => {
  await using temp = await dataDir();
  {
    await using store = await openStore(temp.dir);
    await store.insertJob(job);
  }
  {
    await using store = await openStore(temp.dir, [...MIGRATIONS, EXTRA]);
    assert.deepEqual(await store.findJob(job.id), job);
  }
  assert.equal(versionOf(temp.db), newest + 1);
  const copy = new DatabaseSync(`${temp.db}.v${newest}.bak`, { readOnly: true });
  assert.equal(copy.prepare('pragma user_version').get()?.user_version, newest);
  assert.equal(copy.prepare('select id from jobs').get()?.id, job.id);
  copy.close();
});

test('a VM of before it could be given anything was given nothing', async () => {
  await using temp = await dataDir();
  const known = MIGRATIONS.slice(0, 7);
  await (await openStore(temp.dir, known))[Symbol.asyncDispose]();
  const id = 'vm_01jzz000000000000000000001';
  const { provision: _, ...old } = blankVm(vmOps['vm.create'].input.parse({ name: 'old' }), id, 1);
  const row = Object.entries({ ...old, vsock_cid: 3 }).map(([name, value]): [string, string | number | null] => [
    name,
    typeof value === 'boolean' ? Number(value) : typeof value === 'object' && value ? JSON.stringify(value) : value,
  ]);
  const db = new DatabaseSync(temp.db);
  const columns = row.map(([name]) => name);
  db.prepare(`insert into vms (${columns}) values (${columns.map(() => '?')})`).run(...row.map(([, value]) => value));
  db.close();
  await using store = await openStore(temp.dir);
  const vm = await store.findVm('old');
  assert.deepEqual([vm?.id, vm?.env, vm?.provision, vm?.provision_run], [id, {}, null, null]);
  assert.equal(await store.findProvision(id), undefined);
});

test('a VM and what it was given are made and go together', async () => {
  await using temp = await dataDir();
  await using store = await openStore(temp.dir);
  const id = 'vm_01jzz000000000000000000001';
  const vm = blankVm(vmOps['vm.create'].input.parse({ name: 'new' }), id, 1);
  const provision = { files: [{ path: '/a', content: 'x' }], first_boot: null, first_boot_timeout_ms: 1 };
  const record = { ...vm, run: null, env: { A: '1' }, provision_run: { ws_id: null, begun: null } };
  await store.insertVm(record, { provision });
  assert.deepEqual([(await store.findVm(id))?.env, await store.findProvision(id)], [{ A: '1' }, provision]);
  await store.removeVm(id, { keep_disk: false });
  assert.equal(await store.findProvision(id), undefined);
});

test('a step that fails is undone as a whole, and the step before it stays', async () => {
  await using temp = await dataDir();
  {
    await using store = await openStore(temp.dir);
    await store.insertJob(job);
  }
  const bad = [
    'alter table jobs add column extra text; delete from jobs; select nonsense;',
    "alter table jobs add column extra text; insert into vm_history (vm_id, at_ms, \"to\", why, actor) values ('x', 1, 'a', 'b', 'c');",
  ];
  for (const sql of bad) {
    await assert.rejects(openStore(temp.dir, [...MIGRATIONS, EXTRA, { version: newest + 2, sql }]));
    assert.equal(versionOf(temp.db), newest + 1);
    await using store = await openStore(temp.dir, [...MIGRATIONS, EXTRA]);
    assert.deepEqual(await store.findJob(job.id), job);
  }
});

test('the database of a newer Nexus is refused and not touched, even with a log to be merged', async () => {
  await using temp = await dataDir();
  {
    await using store = await openStore(temp.dir, [...MIGRATIONS, EXTRA]);
    await store.insertJob(job);
  }
  const newer = new DatabaseSync(temp.db); // a crash of the newer one: the log has what the file has not
  newer.exec(`pragma wal_autocheckpoint = 0; pragma user_version = ${newest + 5}`);
  const before = await Promise.all(['', '-wal'].map(end => readFile(temp.db + end)));
  newer.close();
  await Promise.all(['', '-wal'].map((end, n) => writeFile(temp.db + end, before[n] ?? '')));

  await assert.rejects(openStore(temp.dir), error => {
    assert.ok(error instanceof Fault && error.code === 'host', String(error));
    assert.match(
      error.message,
      new RegExp(`^Cannot open .*state\\.db: it has version ${newest + 5}, .* up to ${newest}\\.$`),
    );
    return true;
  });
  assert.deepEqual(await Promise.all(['', '-wal'].map(end => readFile(temp.db + end))), before);
});

test('a file that is no database is refused and kept', async () => {
  await using temp = await dataDir();
  await writeFile(
    temp.db,
    'these are the notes of somebody else, quite long enough to be read as a header of a file\n'.repeat(9),
  );
  await assert.rejects(openStore(temp.dir), error => error instanceof Fault && error.code === 'host');
  assert.match(await readFile(temp.db, 'utf8'), /^these are the notes/);
});
