import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { checkJob, followJob } from '../src/client/job.ts';
import { Nexus } from '../src/client/nexus.ts';
import { Unreachable } from '../src/client/transport.ts';
import { poll } from '../src/lib/deadline.ts';
import { sampleJob, sampleVm, testDoor } from './kit/door.ts';

const EXEC = 'exec_01k9zzzzzzzzzzzzzzzzzzzzzz';
const base64 = (text: string | Buffer): string => Buffer.from(text).toString('base64');

test('names travel safely in paths, values in queries and bodies', async () => {
  const seen: unknown[] = [];
  await using door = await testDoor({
    'vm.get': async (_ctx, input) => {
      seen.push(input);
      return sampleVm('web');
    },
    'vm.list': async (_ctx, input) => {
      seen.push(input);
      return [];
    },
    'vm.delete': async (_ctx, input) => {
      seen.push(input);
      return {};
    },
    'rootfs.download': async (_ctx, input) => {
      seen.push(input);
      return sampleJob('running');
    },
  });
  await door.nexus.vm.get({ vm: 'a/b?c=d %2e' });
  await door.nexus.vm.list();
  await door.nexus.vm.list({ state: 'running' });
  await door.nexus.vm.delete({ vm: 'web', keep_disk: true });
  await door.nexus.rootfs.download({ distro: 'debian', version: '12', packages: ['curl', 'git'] });
  assert.deepEqual(seen, [
    { vm: 'a/b?c=d %2e' },
    {},
    { state: 'running' },
    { vm: 'web', keep_disk: true },
    { distro: 'debian', version: '12', packages: ['curl', 'git'] },
  ]);
  await assert.rejects(door.nexus.vm.get({ vm: '..' }), /is not a name/);
  await assert.rejects(door.nexus.vm.get({ vm: '' }), /'vm' is missing/);
});

test('a fault comes back whole', async () => {
  await using door = await testDoor({
    'vm.get': async () => {
      throw new Fault('not_found', "There is no VM 'web'.", { hint: 'nexusctl vm list', reason: 'no_vm' });
    },
  });
  await assert.rejects(door.nexus.vm.get({ vm: 'web' }), (error: unknown) => {
    assert.ok(error instanceof Fault);
    assert.deepEqual(
      [error.code, error.message, error.hint, error.reason],
      ['not_found', "There is no VM 'web'.", 'nexusctl vm list', 'no_vm'],
    );
    return true;
  });
});

test('no daemon is Unreachable, and so is one that goes away in the middle', async () => {
  await using door = await testDoor({});
  await using nobody = new Nexus({ socket: join(door.dir, 'none.sock') });
  await assert.rejects(nobody.daemon.get(), (e: unknown) => e instanceof Unreachable && e.errno === 'ENOENT');
  const path = join(door.dir, 'cut.sock');
  const server = createServer(socket => {
    socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\ndata: {'));
  });
  await new Promise<void>(resolve => server.listen(path, resolve));
  await using cut = new Nexus({ socket: path });
  await assert.rejects(cut.daemon.get(), Unreachable);
  await assert.rejects(Array.fromAsync(cut.event.watch()), Unreachable);
  server.close();
});

test('something else on the socket does not look like a success', async () => {
  await using door = await testDoor({});
  const path = join(door.dir, 'other.sock');
  const server = createServer(socket => {
    socket.once('data', () => socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello'));
  });
  await new Promise<void>(resolve => server.listen(path, resolve));
  await using other = new Nexus({ socket: path });
  await assert.rejects(other.daemon.get(), /status 404 and no problem document/);
  server.close();
});

test('a stream gives messages of any size, cut anywhere, and its fault', async () => {
  const big = Buffer.alloc(1_000_000, 'é');
  await using door = await testDoor({
    'exec.run': async () =>
      (async function* () {
        yield { type: 'started' as const, exec: EXEC, pid: 7 };
        yield { type: 'stdout' as const, data: base64(big) };
        yield { type: 'stderr' as const, data: base64('warn\n') };
        yield { type: 'exit' as const, exit_code: 3, signal: null, timed_out: false, duration_ms: 1.5 };
      })(),
    'vm.logs': async () =>
      (async function* () {
        yield { type: 'line' as const, line: 'grüße \u2028 \n' };
        throw new Fault('guest', 'It broke.');
      })(),
  });
  const result = await execResult(door.nexus.exec.run({ vm: 'web', argv: ['x'] }));
  assert.ok(result.stdout.equals(big));
  assert.deepEqual(
    { ...result, stdout: null },
    {
      exit_code: 3,
      signal: null,
      stdout: null,
      stderr: Buffer.from('warn\n'),
      truncated: false,
      timed_out: false,
      duration_ms: 1.5,
    },
  );
  const capped = await execResult(door.nexus.exec.run({ vm: 'web', argv: ['x'] }), { max_bytes: 10 });
  assert.deepEqual([capped.stdout.length, capped.truncated, capped.exit_code], [10, true, 3]);
  const lines: unknown[] = [];
  await assert.rejects(
    async () => {
      for await (const message of door.nexus.vm.logs({ vm: 'web' })) lines.push(message);
    },
    (error: unknown) => error instanceof Fault && error.code === 'guest',
  );
  assert.deepEqual(lines, [{ type: 'line', line: 'grüße \u2028 \n' }]);
});

test('leaving or aborting a stream tells the handler', async () => {
  let ended = 0;
  await using door = await testDoor({
    'event.watch': async ctx =>
      (async function* () {
        ctx.signal.addEventListener('abort', () => ended++);
        for (let missed = 1; !ctx.signal.aborted; missed++) {
          yield { type: 'gap' as const, missed };
          await sleep(5);
        }
      })(),
  });
  for await (const message of door.nexus.event.watch()) if (message.type === 'gap') break;
  const abort = new AbortController();
  await assert.rejects(async () => {
    for await (const _ of door.nexus.event.watch({}, { signal: abort.signal })) abort.abort(new Error('enough'));
  }, /enough/);
  for (let i = 0; i < 100 && ended < 2; i++) await sleep(20);
  assert.equal(ended, 2);
});

test('an upload goes out as it comes in; an early answer ends it, a broken source is the error', async () => {
  await using door = await testDoor({
    'exec.stdin': async (ctx, input) => {
      let bytes = 0;
      for await (const chunk of ctx.body ?? []) {
        bytes += chunk.length;
        if (input.exec === 'early') return { bytes };
      }
      return { bytes };
    },
  });
  const stdin = (exec: string, body: Readable | Uint8Array) => door.nexus.exec.stdin({ vm: 'web', exec }, { body });
  assert.deepEqual(await stdin('cat', Buffer.from('hello')), { bytes: 5 });
  assert.deepEqual(await stdin('cat', Readable.from([Buffer.alloc(100_000), Buffer.alloc(1)])), { bytes: 100_001 });
  const endless = Readable.from(
    (async function* () {
      for (;;) {
        yield Buffer.alloc(10);
        await sleep(5);
      }
    })(),
  );
  assert.deepEqual(await stdin('early', endless), { bytes: 10 });
  await poll('the end of the upload', 5000, () => (endless.destroyed ? true : undefined));
  const broken = Readable.from(
    (async function* () {
      yield Buffer.alloc(10);
      throw new Error('the source broke');
    })(),
  );
  await assert.rejects(stdin('cat', broken), /the source broke/);
});

test('a job is followed to its end', async () => {
  await using door = await testDoor({
    'job.log': async (_ctx, input) =>
      (async function* () {
        yield { type: 'log' as const, at_ms: 1, line: 'one' };
        yield { type: 'end' as const, job: sampleJob(input.job === 'good' ? 'succeeded' : 'failed') };
      })(),
  });
  const seen: string[] = [];
  const job = await followJob(door.nexus, 'good', message => seen.push(message.type));
  assert.equal(checkJob(job).result_id, 'krn_01k9zzzzzzzzzzzzzzzzzzzzzz');
  assert.deepEqual(seen, ['log', 'end']);
  const failed = await followJob(door.nexus, 'bad');
  assert.throws(
    () => checkJob(failed),
    (e: unknown) => e instanceof Fault && e.code === 'unverified',
  );
});
