import assert from 'node:assert/strict';
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { silentLog } from '../src/lib/log.ts';
import { signalProc } from '../src/lib/proc.ts';
import { ensureFifos } from '../src/vmm/fifo.ts';
import { endKeeper, findKeepers, hasKeeper, startKeeper } from '../src/vmm/keeper.ts';
import { CONSOLE_FIFO, KEEPER_FIFO, METRICS_FIFO } from '../src/vmm/run_dir.ts';

const { O_NONBLOCK, O_RDWR } = constants;
const ID = 'vm_01h455vb4pex5vsknk084sn02q';

/** Writes to a FIFO, or reads what lies in it, with nobody else there. */
const once = <T>(path: string, use: (fd: number) => T): T => {
  const fd = openSync(path, O_RDWR | O_NONBLOCK);
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
};

test('a keeper keeps what was said last, ends when it is told to, and is found where it cannot be told', async () => {
  const root = await mkdtemp(join(tmpdir(), 'nexus-keeper-'));
  const dir = join(root, ID, 'run');
  const at = (name: string) => join(dir, name);
  try {
    await mkdir(dir, { recursive: true });
    await ensureFifos([KEEPER_FIFO, CONSOLE_FIFO, METRICS_FIFO].map(at));
    assert.equal(hasKeeper(dir), false);
    startKeeper(ID, dir, silentLog());
    assert.equal(hasKeeper(dir), true);
    once(at(CONSOLE_FIFO), fd => writeSync(fd, 'last words'));
    const bytes = Buffer.alloc(100);
    const size = once(at(CONSOLE_FIFO), fd => readSync(fd, bytes));
    assert.equal(bytes.toString('utf8', 0, size), 'last words');
    endKeeper(dir);
    await poll('its end', 10_000, () => !hasKeeper(dir) || undefined);

    startKeeper(ID, dir, silentLog());
    await rm(at(KEEPER_FIFO));
    assert.equal(hasKeeper(dir), false);
    await writeFile(at(KEEPER_FIFO), '');
    assert.throws(() => endKeeper(dir), /keeper is no named pipe/);
    await rm(join(root, ID), { recursive: true });
    const [found] = await poll('it to be found', 10_000, async () => {
      const all = await findKeepers(root);
      return all.length === 1 ? all : undefined;
    });
    assert.equal(found?.vm_id, ID);
  } finally {
    for (const { proc } of await findKeepers(root)) await signalProc(proc, 'SIGKILL');
    await poll('the end of all', 10_000, async () => (await findKeepers(root)).length === 0 || undefined);
    await rm(root, { recursive: true, force: true });
  }
});
