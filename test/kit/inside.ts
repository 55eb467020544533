/** What people do inside a VM, once each, on a guest that was really booted: files and trees, a watch, a port. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecMessage } from '../../src/api/exec.ts';
import { copyIn } from '../../src/cli/cp_in.ts';
import { copyOut } from '../../src/cli/cp_out.ts';
import { execResult } from '../../src/client/exec.ts';
import { raced } from '../../src/lib/deadline.ts';
import { run } from '../../src/lib/proc.ts';
import type { World } from './world.ts';

const LIMIT_MS = 60_000;

/** Names, kinds, modes, sizes and links, then hashes: what a copy keeps, as the programs of either side tell it. */
const FACTS = `cd "$0"; { find . ! -type d -printf '%P %y %m %s %l\\n'; find . -mindepth 1 -type d -printf '%P %y %m\\n'; } | LC_ALL=C sort
find . -type f -exec sha256sum {} + | LC_ALL=C sort`;

/** Files and a tree go in by \`nexusctl cp\` and come out, the same bytes and modes here, there and here again. */
export const copies = async (w: World, vm: string): Promise<void> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-inside-'));
  const at = (name: string) => join(dir, name);
  const cp = async (from: string, to: string) => {
    const { code, stderr } = await w.ctl('cp', from, to);
    assert.deepEqual([code, stderr], [0, '']);
  };
  try {
    await mkdir(at('src/sub/deep'), { recursive: true });
    await writeFile(at('src/run'), '#!/bin/sh\necho ran\n');
    await chmod(at('src/run'), 0o751);
    await writeFile(at('src/sub/deep/späce näme'), randomBytes(200_000));
    await writeFile(at('src/sub/empty'), '', { mode: 0o600 });
    await chmod(at('src/sub/deep'), 0o700);
    await symlink('../no/where', at('src/sub/link'));
    const wanted = (await run(['sh', '-c', FACTS, at('src')])).stdout;
    assert.equal(wanted.split('\n').length, 10, wanted); // three files, a link and two folders, and three hashes
    await cp(at('src'), `${vm}:/root/in`);
    const there = await execResult(w.client.exec.run({ vm, argv: ['sh', '-c', `${FACTS}; ./run`, '/root/in'] }));
    assert.equal(`${there.stdout}${there.stderr}`, `${wanted}ran\n`);
    await cp(`${vm}:/root/in`, at('out'));
    assert.equal((await run(['sh', '-c', FACTS, at('out')])).stdout, wanted);
    const bytes = randomBytes(300_000);
    await writeFile(at('one'), bytes, { mode: 0o640 });
    // in this process: where all is emulated twice, one of its own is seconds
    const copy = { nexus: w.client, vm, archive: false, signal: AbortSignal.timeout(LIMIT_MS), moved: () => {} };
    await copyIn(copy, at('one'), '/root/one');
    await copyOut(copy, '/root/one', at('two'));
    assert.ok((await readFile(at('two'))).equals(bytes));
    assert.equal((await stat(at('two'))).mode & 0o7777, 0o640);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

/** A change inside is told outside. */
export const watches = async (w: World, vm: string): Promise<void> => {
  const limit = AbortSignal.timeout(LIMIT_MS);
  const watch = w.client.fs.watch({ vm, path: '/srv' });
  try {
    assert.equal((await raced(watch.next(), limit)).value?.type, 'watching');
    await execResult(w.client.exec.run({ vm, argv: ['touch', '/srv/seen'] }));
    assert.deepEqual((await raced(watch.next(), limit)).value, {
      type: 'created',
      path: '/srv/seen',
      directory: false,
    });
  } finally {
    await watch.return();
  }
};

/** Says each line again, to one who comes. Perl is in the smallest Debian. */
const SERVER = `$| = 1; my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", LocalPort => 8080) or die "$@";
print "listens\\n"; my $c = $s->accept; while (defined(my $l = <$c>)) { print $c "again: $l" }`;

/** A server on the guest's loopback is reached without a network device. */
export const serves = async (w: World, vm: string): Promise<void> => {
  const limit = AbortSignal.timeout(LIMIT_MS);
  const server = w.client.exec.run({ vm, argv: ['perl', '-MIO::Socket::INET', '-e', SERVER], on_disconnect: 'kill' });
  const said = async (type: ExecMessage['type']) => {
    for (;;) {
      const { value } = await raced(server.next(), limit);
      assert.ok(value !== undefined && value.type !== 'stderr', JSON.stringify(value));
      if (value.type === type) return value;
    }
  };
  await said('stdout');
  const talk = await w.client.port.open({ vm, port: 8080 });
  let got = '';
  const heard = (async () => {
    for await (const piece of talk) if (piece instanceof Uint8Array) got += Buffer.from(piece);
  })();
  await talk.send(Buffer.from('one\ntwo\n'));
  await talk.send({ type: 'end' });
  await raced(heard, limit);
  assert.equal(got, 'again: one\nagain: two\n');
  const exit = await said('exit');
  assert.ok(exit.type === 'exit' && exit.exit_code === 0, JSON.stringify(exit));
  await server.return();
};
