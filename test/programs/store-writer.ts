/**
 * A program for the tests of the store, run as `node store-writer.ts <what> <data_dir>`. It says on standard output what the
 * store has acknowledged, each line with one write, so that the reader knows how far it came when it is killed.
 */
import { writeSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Fault } from '../../src/api/fault.ts';
import type { VmState } from '../../src/api/vm_state.ts';
import { lockDataDir } from '../../src/store/lock.ts';
import { openStore } from '../../src/store/open.ts';

const say = (...words: unknown[]) => writeSync(1, `${words.join(' ')}\n`);
const [what = '', dir = ''] = process.argv.slice(2);

const newId = (prefix: string) => {
  const alphabet = '0123456789abcdefghjkmnpqrstvwxyz';
  const tail = Array.from({ length: 25 }, () => alphabet[Math.floor(Math.random() * 32)]).join('');
  return `${prefix}_0${tail}`;
};

const newJob = (subject: string) => ({
  id: newId('job'),
  kind: 'kernel.download',
  subject,
  state: 'queued' as const,
  progress: null,
  error: null,
  result_id: null,
  created_at_ms: Date.now(),
  started_at_ms: null,
  ended_at_ms: null,
});

/** Transitions of the VM 'web' round and round, notes and jobs beside them, until it is killed. */
const write = async () => {
  await using store = await openStore(dir);
  const next: Partial<Record<VmState, VmState>> = {
    created: 'starting',
    starting: 'running',
    running: 'stopping',
    stopping: 'stopped',
    stopped: 'starting',
  };
  const transitions = async () => {
    for (let n = 0; ; n++) {
      const vm = await store.findVm('web');
      const to = vm && next[vm.state];
      if (vm === undefined || to === undefined) throw new Error('the VM is not there or in no state to go on from');
      const why = `${process.pid}-${n}`;
      await store.transitionVm(vm.id, { to, why, actor: 'api', patch: { pid: n, guest: null } });
      say('vm', why, to);
    }
  };
  const jobs = async () => {
    for (;;) {
      const job = newJob('debian:12');
      await store.insertJob(job);
      say('job', job.id);
    }
  };
  const notes = async () => {
    for (let n = (await store.findVm('web'))?.boot_ms ?? 0; ; n++) {
      const vm = await store.findVm('web');
      await store.noteVm(vm?.id ?? '', { boot_ms: n });
      say('note', n);
    }
  };
  await Promise.all([transitions(), jobs(), jobs(), notes()]);
};

/** Writes until the disk is full; then reads everything; then makes room and writes again. */
const fill = async () => {
  const ballast = join(dir, 'ballast');
  await writeFile(ballast, Buffer.alloc(128 * 1024));
  await using store = await openStore(dir);
  let kept = 0;
  try {
    for (; kept < 10_000; kept++) await store.insertJob(newJob('x'.repeat(4000)));
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    say('fault', error.code, error.message);
  }
  const [job] = await store.listJobs({ limit: 1 });
  const error = await store.updateJob(job?.id ?? '', { subject: 'y'.repeat(100_000) }).catch((e: unknown) => e);
  say('fault', error instanceof Fault ? error.code : String(error));
  say('kept', kept, (await store.listJobs({ limit: 100_000 })).length);
  await writeFile(ballast, '');
  await store.insertJob(newJob('after'));
  say('after', (await store.listJobs({ limit: 100_000 })).length);
};

/** Takes the directory and keeps it until it is killed. */
const lock = async () => {
  try {
    await using _ = await lockDataDir(dir);
    say('held');
    await new Promise(resolve => setTimeout(resolve, 120_000));
  } catch (error) {
    say('refused', error instanceof Fault ? error.code : String(error));
  }
};

if (what === 'write') await write();
else if (what === 'fill') await fill();
else if (what === 'lock') await lock();
else if (what !== '') throw new Error(`no such job: ${what}`);
