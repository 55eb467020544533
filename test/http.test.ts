import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { Fault } from '../src/api/fault.ts';
import { ProblemSchema } from '../src/api/problem.ts';
import { openHttp } from '../src/daemon/http.ts';
import { poll, withDeadline } from '../src/lib/deadline.ts';
import { silentLog } from '../src/lib/log.ts';
import { ask, sampleVm, stubs, testDoor } from './kit/door.ts';

/** Sends raw bytes and gives what comes back until the other side ends. */
const talk = (path: string, bytes: string): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = '';
    const socket = createConnection(path).setEncoding('utf8');
    socket.on('data', chunk => {
      text += chunk;
    });
    socket.on('close', () => resolve(text)).on('error', reject);
    socket.write(bytes);
  });

const detailOf = (json: unknown): string => ProblemSchema.parse(json).detail;

test('a plain operation gets its input from path, query and body, parsed once', async () => {
  const seen: unknown[] = [];
  await using door = await testDoor({
    'vm.start': async (_ctx, input) => {
      seen.push(input);
      return sampleVm('web');
    },
    'vm.history': async (_ctx, input) => {
      seen.push(input);
      return [];
    },
  });
  const a = await ask(door.socket, { method: 'POST', path: '/v1/vms/web/start', body: '{"wait":"none"}' });
  assert.equal(a.status, 200);
  const b = await ask(door.socket, { path: '/v1/vms/web/history?limit=7' });
  assert.equal(b.status, 200);
  const c = await ask(door.socket, { method: 'POST', path: '/v1/vms/web/start?timeout_ms=5' });
  assert.equal(c.status, 200);
  assert.deepEqual(seen, [
    { vm: 'web', wait: 'none', timeout_ms: 60_000 },
    { vm: 'web', limit: 7 },
    { vm: 'web', wait: 'ready', timeout_ms: 5 },
  ]);
});

test('bad input is `invalid` and names the field and what is allowed', async () => {
  await using door = await testDoor({});
  const create = async (body: string) => {
    const answer = await ask(door.socket, { method: 'POST', path: '/v1/vms', body });
    assert.equal(answer.status, 400);
    assert.match(answer.headers['content-type'] ?? '', /^application\/problem\+json/);
    return detailOf(answer.json);
  };
  assert.match(await create('{"name":"a","colour":1}'), /unknown field 'colour'; allowed: name, image, vcpus/);
  assert.match(await create('{"name":"a","vcpus":"2"}'), /'vcpus' must be a number/);
  assert.match(await create('{"name":"a","vcpus":33}'), /'vcpus' must be at most 32/);
  assert.match(await create('{"name":"a","vcpus":1.5}'), /'vcpus' must be a whole number/);
  assert.match(await create('{}'), /'name' is missing/);
  assert.match(await create('{"name":"vm_01k9zzzzzzzzzzzzzzzzzzzzzz"}'), /may not look like an ID/);
  assert.match(await create('[]'), /must be a JSON object/);
  assert.match(await create('{'), /not JSON/);
  assert.match(await create('{"name":"a","__proto__":{"vcpus":1}}'), /unknown field '__proto__'/);
  const twice = await ask(door.socket, { method: 'POST', path: '/v1/vms/web/start', body: '{"vm":"db"}' });
  assert.match(detailOf(twice.json), /'vm' is given in two places/);
  const query = await ask(door.socket, { path: '/v1/vms?state=sleeping' });
  assert.match(detailOf(query.json), /'state' must be one of created, starting/);
  const text = await ask(door.socket, { path: '/v1/vms/web/history?limit=many' });
  assert.match(detailOf(text.json), /'limit' must be a number/);
  const type = await ask(door.socket, {
    method: 'POST',
    path: '/v1/vms',
    body: 'name=a',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  });
  assert.match(detailOf(type.json), /must be application\/json/);
});

test('unknown routes, bad URLs, too much and no HTTP at all are problems too', async () => {
  await using door = await testDoor({});
  const gone = await ask(door.socket, { path: '/v2/vms' });
  assert.equal(gone.status, 404);
  assert.equal(ProblemSchema.parse(gone.json).code, 'not_found');
  const bad = await ask(door.socket, { path: '/v1/vms/%zz' });
  assert.equal(bad.status, 400);
  assert.equal(ProblemSchema.parse(bad.json).code, 'invalid');
  const big = await ask(door.socket, { method: 'POST', path: '/v1/vms', body: `{"name":"${'a'.repeat(9_000_000)}"}` });
  assert.equal(big.status, 400);
  assert.match(detailOf(big.json), /larger than/);
  assert.match(await talk(door.socket, 'EHLO nexus\r\n\r\n'), /^HTTP\/1.1 400 .*application\/problem\+json/s);
});

test('faults keep code, hint and status; other errors become `internal` with a reference that is in the log', async () => {
  const lines: string[] = [];
  const log = pino(
    new Writable({
      write: (chunk, _encoding, done) => {
        lines.push(String(chunk));
        done();
      },
    }),
  );
  await using door = await testDoor(
    {
      'vm.get': async () => {
        throw new Fault('busy', "Cannot get VM 'web': vm.start has it.", { hint: 'Wait.' });
      },
      'vm.list': async () => {
        throw new TypeError('secret of the inside');
      },
      'ws.list': async () => [{ id: 'no' }] as never,
    },
    log,
  );
  const busy = await ask(door.socket, { path: '/v1/vms/web' });
  assert.equal(busy.status, 409);
  assert.deepEqual(ProblemSchema.parse(busy.json), {
    type: 'urn:nexus:fault:busy',
    title: 'Busy',
    status: 409,
    code: 'busy',
    detail: "Cannot get VM 'web': vm.start has it.",
    hint: 'Wait.',
  });
  const broken = ProblemSchema.parse((await ask(door.socket, { path: '/v1/vms' })).json);
  assert.equal(broken.code, 'internal');
  assert.ok(!broken.detail.includes('secret'));
  assert.ok(
    broken.ref && lines.some(line => line.includes(String(broken.ref)) && line.includes('secret of the inside')),
  );
  const breach = ProblemSchema.parse((await ask(door.socket, { path: '/v1/workspaces' })).json);
  assert.match(breach.detail, /breaks the contract/);
});

test('a plain operation goes on when its client goes away', async () => {
  const done = Promise.withResolvers<boolean>();
  const begun = Promise.withResolvers<void>();
  await using door = await testDoor({
    'vm.get': async ctx => {
      begun.resolve();
      await sleep(50);
      done.resolve(ctx.signal.aborted);
      return sampleVm('web');
    },
  });
  const abort = new AbortController();
  const call = door.nexus.vm.get({ vm: 'web' }, { signal: abort.signal });
  call.catch(() => {});
  await begun.promise;
  abort.abort(new Error('gone'));
  await assert.rejects(call, /gone/);
  assert.equal(await done.promise, false);
});

test('the socket is 0600 from its first moment, replaces a leftover, and goes with the door', async () => {
  await using door = await testDoor({});
  assert.equal(statSync(door.socket).mode & 0o777, 0o600);
  assert.deepEqual(readdirSync(door.dir), ['d.sock']);
  const stale = join(door.dir, 'stale.sock');
  writeFileSync(stale, '');
  const second = await openHttp({ handlers: stubs({}), socket: stale, log: silentLog() });
  assert.equal((await ask(stale, { path: '/v1/daemon' })).status, 422);
  await second.close();
  assert.equal(existsSync(stale), false);
  await assert.rejects(
    openHttp({ handlers: stubs({}), socket: join(door.dir, 'x'.repeat(120)), log: silentLog() }),
    (e: unknown) => e instanceof Fault && e.code === 'host' && /longer than 107/.test(e.message),
  );
  assert.deepEqual(readdirSync(door.dir), ['d.sock']);
});

test('a door that closes does not remove the socket of its successor', async () => {
  await using door = await testDoor({});
  const next = await openHttp({ handlers: stubs({}), socket: door.socket, log: silentLog() });
  await door.close();
  assert.equal((await ask(door.socket, { path: '/v1/daemon' })).status, 422);
  await next.close();
});

test('a stream: messages, ids, the end', async () => {
  await using door = await testDoor({
    'event.watch': async () =>
      (async function* () {
        yield { type: 'vm.state', seq: 7, at_ms: 1, subject: 'x', data: {} };
        yield { type: 'gap' as const, missed: 2 };
      })(),
  });
  const answer = await ask(door.socket, { path: '/v1/events' });
  assert.match(answer.headers['content-type'] ?? '', /^text\/event-stream/);
  assert.equal(
    answer.text,
    'id: 7\ndata: {"type":"vm.state","seq":7,"at_ms":1,"subject":"x","data":{}}\n\ndata: {"type":"gap","missed":2}\n\n',
  );
});

test('a stream that throws: a status before the first message, an event after it', async () => {
  await using door = await testDoor({
    'vm.logs': async (_ctx, input) => {
      if (input.vm === 'gone') throw new Fault('not_found', "There is no VM 'gone'.");
      return (async function* () {
        if (input.vm === 'late') throw new Fault('bad_state', 'Too late.');
        yield { type: 'line' as const, line: 'one' };
        throw new Fault('guest', 'It broke.', { hint: 'Look.' });
      })();
    },
  });
  assert.equal((await ask(door.socket, { path: '/v1/vms/gone/logs' })).status, 404);
  assert.equal((await ask(door.socket, { path: '/v1/vms/late/logs' })).status, 409);
  const answer = await ask(door.socket, { path: '/v1/vms/web/logs' });
  assert.equal(answer.status, 200);
  assert.match(answer.text, /^data: \{"type":"line","line":"one"\}\n\nevent: fault\ndata: \{.*"code":"guest"/);
});

test('a client that never reads costs bounded memory; when it goes away the iterator returns', async () => {
  let made = 0;
  const returned = Promise.withResolvers<boolean>();
  await using door = await testDoor({
    'exec.run': async ctx =>
      (async function* () {
        try {
          for (;;) {
            made++;
            yield { type: 'stdout' as const, data: 'A'.repeat(65_536) };
          }
        } finally {
          returned.resolve(ctx.signal.aborted);
        }
      })(),
  });
  const body = '{"argv":["yes"]}';
  const socket = createConnection(door.socket);
  socket.pause();
  socket.write(
    `POST /v1/vms/web/execs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  await poll('the first messages', 5000, () => (made > 0 ? true : undefined));
  await sleep(200);
  const stalled = made;
  await sleep(200);
  assert.equal(made, stalled);
  assert.ok(stalled < 64, `${stalled} messages of 64 KiB were made for a client that reads none`);
  socket.destroy();
  assert.equal(await returned.promise, true);
});

test('a silent stream opens after a while, and its handler learns when the client goes away', async () => {
  const aborted = Promise.withResolvers<void>();
  await using door = await testDoor({
    'event.watch': async ctx => {
      ctx.signal.addEventListener('abort', () => aborted.resolve());
      return (async function* () {
        await new Promise(resolve => ctx.signal.addEventListener('abort', resolve));
        yield { type: 'gap' as const, missed: 1 };
      })();
    },
  });
  const socket = createConnection(door.socket);
  socket.write('GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n');
  const head = await new Promise<string>(resolve => socket.once('data', chunk => resolve(String(chunk))));
  assert.match(head, /200 OK/);
  socket.destroy();
  await aborted.promise;
});

test('closing the door ends streams with a fault', async () => {
  const begun = Promise.withResolvers<void>();
  await using door = await testDoor({
    'event.watch': async ctx =>
      (async function* () {
        yield { type: 'gap' as const, missed: 1 };
        begun.resolve();
        await new Promise(resolve => ctx.signal.addEventListener('abort', resolve));
      })(),
  });
  const answer = ask(door.socket, { path: '/v1/events' });
  await begun.promise;
  await door.close();
  assert.match((await answer).text, /event: fault\ndata: .*"code":"canceled".*The daemon is stopping/);
});

test('an upload is read as a stream, beyond the limit of other bodies; an early answer ends it', async () => {
  await using door = await testDoor({
    'exec.stdin': async (ctx, input) => {
      let bytes = 0;
      for await (const chunk of ctx.body ?? []) {
        bytes += chunk.length;
        if (input.exec === 'closed') break;
      }
      return { bytes };
    },
  });
  const body = new Uint8Array(10 * 1024 * 1024);
  const all = await ask(door.socket, { method: 'POST', path: '/v1/vms/web/execs/cat/stdin', body });
  assert.deepEqual(all.json, { bytes: body.length });
  const octets = { 'content-type': 'application/octet-stream' };
  const empty = { method: 'POST', path: '/v1/vms/web/execs/cat/stdin', headers: octets };
  assert.deepEqual((await ask(door.socket, empty)).json, { bytes: 0 });
});

test('an upload that is refused before it is read does not hold a client that sends all of it first', async () => {
  await using door = await testDoor({
    'exec.stdin': async () => {
      throw new Fault('bad_state', 'There is nobody to read it.');
    },
  });
  const bytes = 10 * 1024 * 1024;
  const refusal = async (path: string): Promise<string> => {
    const socket = createConnection(door.socket);
    try {
      const head = `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: ${bytes}\r\n\r\n`;
      const sent = new Promise((resolve, reject) => {
        socket.on('error', reject).write(head);
        socket.write(Buffer.alloc(bytes), resolve);
      });
      await withDeadline('the whole upload', 20_000, sent);
      return String((await withDeadline('the answer', 20_000, once(socket, 'data')))[0]);
    } finally {
      socket.destroy();
    }
  };
  assert.match(await refusal('/v1/vms/web/execs/cat/stdin'), /nobody to read it/);
  assert.match(await refusal('/v1/vms/web/execs/cat/stdin?colour=1'), /unknown field/);
});

test('a body that does not come in time ends its connection; a stream may last longer than that', async () => {
  await using door = await testDoor({});
  const socket = join(door.dir, 'short.sock');
  const handlers = stubs({
    'vm.logs': async () =>
      (async function* () {
        await sleep(300);
        yield { type: 'end' as const };
      })(),
  });
  await using _short = await openHttp({ handlers, socket, log: silentLog(), body_ms: 100 });
  const head = 'POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{';
  assert.doesNotMatch(await talk(socket, head), /200 OK/);
  assert.match((await ask(socket, { path: '/v1/vms/web/logs' })).text, /"end"/);
});
