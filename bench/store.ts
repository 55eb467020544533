/**
 * The store: `node bench/store.ts [dir]`. A transition of a VM through the store, against the same three statements in a bare
 * SQLite transaction in turn, both synced to the disk that `dir` is on (default: the temporary directory).
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { DatabaseSync } from 'node:sqlite';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { openStore } from '../src/store/open.ts';
import { machine, report, timed } from './kit.ts';

const ROUNDS = 2000;
const WARM_UP = 200;
const id = 'vm_01jzz000000000000000000001';
const dir = await mkdtemp(join(process.argv[2] ?? tmpdir(), 'nexus-bench-'));

const bare = new DatabaseSync(join(dir, 'bare.db'));
bare.exec(
  'pragma journal_mode = wal; pragma synchronous = full; create table vm (id text primary key, state text) strict;',
);
bare.exec(
  `create table history (seq integer primary key, id text, state text) strict; insert into vm values ('${id}', '');`,
);
const read = bare.prepare('select * from vm where id = ?');
const note = bare.prepare('insert into history (id, state) values (?, ?)');
const write = bare.prepare('update vm set state = ? where id = ?');
const bareTransition = (state: string) => {
  bare.exec('begin immediate');
  read.get(id);
  note.run(id, state);
  write.run(state, id);
  bare.exec('commit');
};

try {
  await using store = await openStore(dir);
  const input = vmOps['vm.create'].input.parse({ name: 'web' });
  await store.insertVm({ ...blankVm(input, id, Date.now()), run: null, env: {}, provision_run: null }, {});
  await store.transitionVm(id, { to: 'starting', why: 'bench', actor: 'api' });
  await store.transitionVm(id, { to: 'running', why: 'bench', actor: 'api' });
  const ours: number[] = [];
  const theirs: number[] = [];
  for (let i = 0; i < ROUNDS + WARM_UP; i++) {
    const to = i % 2 === 0 ? 'paused' : 'running';
    theirs.push(await timed(() => bareTransition(to)));
    ours.push(await timed(() => store.transitionVm(id, { to, why: 'bench', actor: 'api', patch: { pid: i } })));
  }
  const ratios = ours.map((ms, n) => ms / (theirs[n] ?? Number.NaN));
  console.log(`machine: ${machine()}`);
  const kept = { transition: ours.slice(WARM_UP), bare: theirs.slice(WARM_UP), ratio: ratios.slice(WARM_UP) };
  const what = 'call of transitionVm to its answer, synced';
  const ok = [
    report({ name: 'store.transitionVm', what, samples: kept.transition, unit: 'ms', limit: 5 }),
    report({ name: 'bare SQLite', what: 'the same statements, synced', samples: kept.bare, unit: 'ms', limit: 5 }),
    report({ name: 'ours against bare', what: 'each pair in turn', samples: kept.ratio, unit: 'x', limit: 5 }),
  ];
  process.exitCode = ok.every(Boolean) ? 0 : 1;
} finally {
  bare.close();
  await rm(dir, { recursive: true, force: true });
}
