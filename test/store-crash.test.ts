/** The store against kill -9 and a full disk, and the lock of the data directory. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Fault } from '../src/api/fault.ts';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { lockDataDir } from '../src/store/lock.ts';
import { openStore } from '../src/store/open.ts';
import { type Db, openDb, unsynced } from '../src/store/sqlite.ts';

const WRITER = join(import.meta.dirname, 'programs/store-writer.ts');

const dataDir = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-crash-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

/** A writer, its lines as they come, and its end by kill -9. */
const writer = (what: string, dir: string) => {
  const child: ChildProcess = spawn(process.execPath, [WRITER, what, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines: string[] = [];
  const first = Promise.withResolvers<string>();
  const ended = once(child, 'close');
  if (child.stdout !== null)
    createInterface({ input: child.stdout }).on('line', line => {
      lines.push(line);
      first.resolve(line);
    });
  ended.then(([code]) => first.reject(new Error(`the writer ended with ${code} and said nothing`)));
  first.promise.catch(() => {});
  const kill = async () => {
    child.kill('SIGKILL');
    await ended;
  };
  return { lines, first: first.promise, kill, [Symbol.asyncDispose]: kill };
};

const isInUse = (dir: string) => (error: unknown) => {
  assert.ok(error instanceof Fault && error.code === 'in_use', String(error));
  assert.equal(error.message, `Cannot use ${dir}: another daemon runs on it.`);
  return true;
};

test('kill -9 at any moment: what was acknowledged is there, each transition with its history row', async () => {
  await using temp = await dataDir();
  const vm_id = 'vm_01jzz000000000000000000001';
  {
    await using store = await openStore(temp.dir);
    const input = vmOps['vm.create'].input.parse({ name: 'web' });
    await store.insertVm({ ...blankVm(input, vm_id, 1), run: null, env: {}, provision_run: null }, {});
  }
  let transitions = 0;
  let notes = 0;
  for (let round = 0; round < 6; round++) {
    await using child = writer('write', temp.dir);
    await child.first;
    await sleep(Math.random() * 120);
    await child.kill();
    const said = child.lines.map(line => line.split(' '));
    await using store = await openStore(temp.dir);

    const jobs = new Set((await store.listJobs({ limit: 1_000_000 })).map(job => job.id));
    const lost = said.filter(([kind, id]) => kind === 'job' && !jobs.has(id ?? ''));
    assert.deepEqual(lost, [], 'acknowledged jobs are lost');

    const history = (await store.vmHistory(vm_id, 1_000_000)).reverse();
    const written = new Set(history.map(entry => `${entry.why} ${entry.to}`));
    const missing = said.filter(([kind, why, to]) => kind === 'vm' && !written.has(`${why} ${to}`));
    assert.deepEqual(missing, [], 'acknowledged transitions are lost');
    transitions += said.filter(([kind]) => kind === 'vm').length;
    history.forEach((entry, n) => {
      assert.equal(entry.from, n === 0 ? null : history[n - 1]?.to, 'a gap in the history');
    });
    const last = history.at(-1);
    const vm = await store.findVm('web');
    assert.equal(vm?.state, last?.to);
    if (last?.from !== null) assert.equal(String(vm?.pid), last?.why.split('-')[1], 'the patch of the last transition');
    const noted = said.findLast(([kind]) => kind === 'note')?.[1];
    if (noted !== undefined) notes++;
    const kept = vm?.boot_ms ?? -1;
    assert.ok(noted === undefined || kept >= Number(noted), `note ${noted} was acknowledged, ${kept} is there`);
    const unsaid = history.length - 1 - transitions;
    assert.ok(unsaid >= 0 && unsaid <= round + 1, `${unsaid} transitions that nobody acknowledged`);
  }
  assert.ok(transitions > 0 && notes > 0);
});

test('only a note does not wait for the disk, also after one that failed', async () => {
  await using temp = await dataDir();
  const raw = new DatabaseSync(join(temp.dir, 'x.db'));
  raw.exec('pragma journal_mode = wal; pragma synchronous = full; create table notes (name text, value text)');
  const db = openDb(raw);
  const mode = () => raw.prepare('pragma synchronous').get()?.synchronous; // 1: normal, 2: full
  const add = (to: Db, name: string) => to.insertInto('notes').values({ name, value: '' }).execute();
  const seen: unknown[] = [];
  const note = unsynced(db, async own => {
    await own.transaction().execute(trx => add(trx, 'a'));
    seen.push(mode());
  });
  const waits = db.transaction().execute(async trx => {
    await add(trx, 'b');
    seen.push(mode());
  });
  await Promise.all([note, waits]);
  await assert.rejects(
    unsynced(db, () => Promise.reject(new Error('no'))),
    /no/,
  );
  assert.deepEqual([...seen, mode()], [1, 2, 2]);
  await db.destroy();
});

test('a full disk: no_room, what was acknowledged stays, and with room again the store goes on', async t => {
  const inside = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c'];
  await using temp = await dataDir();
  const mount = `mount -t tmpfs -o size=1m none '${temp.dir}'`;
  const able = await runAny([...inside, mount]).catch(() => undefined);
  if (able?.code !== 0) return t.skip('this host lets no ordinary user mount a small file system');
  const { stdout } = await run([...inside, `${mount} && exec "$0" '${WRITER}' fill '${temp.dir}'`, process.execPath]);
  const [fault, within, kept, after] = stdout.trim().split('\n');
  assert.equal(fault, `fault no_room Cannot write to ${join(temp.dir, 'state.db')}: the disk is full.`);
  assert.equal(within, 'fault no_room', 'inside a transaction of several statements');
  const count = Number(kept?.split(' ')[1]);
  assert.ok(count > 0);
  assert.equal(kept, `kept ${count} ${count}`);
  assert.equal(after, `after ${count + 1}`);
});

test('a data directory has one daemon; a second is refused at once', async () => {
  await using temp = await dataDir();
  {
    await using _ = await lockDataDir(temp.dir);
    await assert.rejects(lockDataDir(temp.dir), isInUse(temp.dir));
    await run(['true']); // neither a child nor the refused opener frees it
    await using second = writer('lock', temp.dir);
    assert.equal(await second.first, 'refused in_use');
  }
  await using _ = await lockDataDir(temp.dir);
});

test('five daemons at once: one has the directory; kill -9 frees it', async () => {
  await using temp = await dataDir();
  const all = Array.from({ length: 5 }, () => writer('lock', temp.dir));
  try {
    const said = await Promise.all(all.map(one => one.first));
    assert.deepEqual(said.sort(), ['held', 'refused in_use', 'refused in_use', 'refused in_use', 'refused in_use']);
    await assert.rejects(lockDataDir(temp.dir), isInUse(temp.dir));
  } finally {
    await Promise.all(all.map(one => one.kill()));
  }
  await using _ = await lockDataDir(temp.dir);
});
