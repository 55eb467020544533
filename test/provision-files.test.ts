/** The files that a VM is given, over a connection that is lost meanwhile: the real agent on this host. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { writeFile } from '../src/core/provision_files.ts';
import { pause } from '../src/lib/deadline.ts';
import { harness } from './kit/harness.ts';

test('a file is written although the connection is lost in the middle, again and again', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-given-'));
  try {
    await using agent = await harness();
    const { guest, proxy } = agent;
    const signal = AbortSignal.timeout(60_000);
    await guest.ready(signal);
    const path = join(dir, 'in/file');
    const content = 'x'.repeat(1024 * 1024);
    let begun = proxy.opened;
    proxy.silence();
    let over = false;
    const written = writeFile(guest.files, { path, content, mode: '0700' }, signal).finally(() => {
      over = true;
    });
    written.catch(() => {});
    await pause(200, signal);
    for (const _ of [1, 2]) {
      proxy.cut();
      while (proxy.opened === begun && !over) await pause(1, signal);
      begun = proxy.opened;
    }
    await written;
    assert.equal(await readFile(path, 'utf8'), content);
    assert.equal((await stat(path)).mode & 0o7777, 0o700);
    const refused = writeFile(guest.files, { path: `${path}/x`, content: '' }, signal);
    await assert.rejects(refused, (error: unknown) => error instanceof Fault && error.reason === 'ENOTDIR');
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
