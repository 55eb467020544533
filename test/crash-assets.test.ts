/** The daemon dies and fails at every step of what makes disks, images, kernels and archives, and of its own start. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, open, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { run } from '../src/lib/proc.ts';
import { traces } from './kit/audit.ts';
import { prove } from './kit/crash.ts';
import { assetVerbs } from './kit/crash_assets.ts';
import { bootVerb, hostVerb, keeperVerb, seedVerb } from './kit/crash_daemon.ts';
import { settled } from './kit/crash_deeds.ts';

const here = settled();

test('the audit sees a file, a named pipe, a socket, a process and a mount that no record accounts for', async () => {
  const { w } = here();
  const at = (...parts: string[]) => join(w.data_dir, ...parts);
  const dir = at('vms', 'vm_01h455vb4pex5vsknk084sn02q');
  assert.deepEqual(Object.values(await traces(w)).flat(), []);
  await mkdir(dir);
  await writeFile(at('tmp', 'half'), '');
  await run(['mkfifo', join(dir, 'console')]);
  const server = createServer().listen(join(dir, 'x.sock'));
  const child = spawn('sleep', ['60'], { cwd: dir });
  await using _held = await open(at('tmp', 'half'));
  const mounted = await run(['mount', '-t', 'tmpfs', 'none', at('tmp')]).then(
    () => true,
    () => false, // an ordinary user cannot
  );
  try {
    const found = await poll('the socket', 5000, async () => {
      const now = await traces(w);
      return now.sockets.length > 0 && now.processes.length > 0 ? now : undefined;
    });
    const below = 'vms/vm_01h455vb4pex5vsknk084sn02q';
    const files = [...(mounted ? [] : ['tmp/half']), below, `${below}/console`, `${below}/x.sock`];
    assert.deepEqual(found.files, files);
    assert.deepEqual([found.sockets.length, found.processes.length, found.mounts.length], [1, 1, mounted ? 1 : 0]);
  } finally {
    if (mounted) await run(['umount', at('tmp')]);
    child.kill('SIGKILL');
    server.close();
    await rm(dir, { recursive: true });
    await rm(at('tmp', 'half'));
  }
});

prove(here, [...assetVerbs(here), seedVerb(here), bootVerb(here), hostVerb(here), keeperVerb(here)]);
