/** Operations that need both directions at once, at the door: what comes in, what goes out, who stalls and who leaves. */
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import { WebSocket } from 'ws';
import { Fault } from '../src/api/fault.ts';
import type { TerminalMessage, TerminalSay } from '../src/api/terminal.ts';
import { Nexus } from '../src/client/nexus.ts';
import { Unreachable } from '../src/client/transport.ts';
import type { Ctx, Talk } from '../src/core/handler.ts';
import { poll, sleep, withDeadline } from '../src/lib/deadline.ts';
import { rejects } from './kit/behave.ts';
import { ask, type TestDoor, testDoor } from './kit/door.ts';

const EXEC = 'exec_01k9zzzzzzzzzzzzzzzzzzzzzz';
const OPENED = { type: 'opened', exec: EXEC, pid: 7, session: 'main', made: true } as const;
const EXIT = { type: 'exit', exit_code: 3, signal: null, timed_out: false, duration_ms: 1 } as const;

type Answer = (
  ctx: Ctx,
  input: { vm: string; cols: number; read_only: boolean },
) => Promise<Talk<TerminalMessage, TerminalSay>>;
let answer: Answer;
let d: TestDoor;
before(async () => {
  d = await testDoor({ 'terminal.open': (ctx, input) => answer(ctx, input) });
});
after(() => d[Symbol.asyncDispose]());

const nothing = async () => {};
const open = () => d.nexus.terminal.open({ vm: 'web' });
const url = (query = '') => `/v1/vms/web/terminal${query}`;
const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
};

test('bytes and messages go both ways, and the end is an end', { timeout: 30_000 }, async () => {
  const seen: unknown[] = [];
  let inputs: unknown;
  answer = async (_ctx, input) => {
    inputs = input;
    const more = Promise.withResolvers<void>();
    return {
      take: async piece => {
        seen.push(Buffer.isBuffer(piece) ? piece.toString('latin1') : piece);
        if (seen.length === 3) more.resolve();
      },
      output: (async function* () {
        yield OPENED;
        yield Buffer.from('a\0\u00ff', 'latin1');
        await more.promise;
        yield EXIT;
      })(),
    };
  };
  const talk = await d.nexus.terminal.open({ vm: 'w b', cols: 100, read_only: true });
  await talk.send(Buffer.from('x\u00fe', 'latin1'));
  await talk.send({ type: 'resize', cols: 80, rows: 24 });
  await talk.send(Buffer.alloc(0));
  const pieces = await Array.fromAsync(talk);
  assert.deepEqual(pieces, [OPENED, Buffer.from('a\0\u00ff', 'latin1'), EXIT]);
  assert.deepEqual(seen, ['x\u00fe', { type: 'resize', cols: 80, rows: 24 }, '']);
  assert.deepEqual(inputs, { vm: 'w b', cols: 100, rows: 24, read_only: true });
  await talk.over;
});

test('faults: before it is open as of any request, later as its last word', { timeout: 30_000 }, async () => {
  answer = async () => {
    throw new Fault('not_found', 'There is no VM here.', { hint: 'look' });
  };
  const early = await rejects(open(), 'not_found');
  assert.deepEqual([early.message, early.hint], ['There is no VM here.', 'look']);
  await rejects(d.nexus.terminal.open({ vm: 'web', cols: 0 }), 'invalid');
  answer = async () => {
    throw new TypeError('a mistake');
  };
  assert.match((await rejects(open(), 'internal')).hint ?? '', /log has the cause/);
  const talks =
    (output: () => AsyncGenerator<Uint8Array | TerminalMessage>): Answer =>
    async () => ({ output: output(), take: nothing });
  answer = talks(async function* () {
    yield OPENED;
    throw new Fault('guest', 'The guest went away.');
  });
  const pieces: unknown[] = [];
  await rejects(
    (async () => {
      for await (const piece of await open()) pieces.push(piece);
    })(),
    'guest',
    /^The guest went away\.$/,
  );
  assert.deepEqual(pieces, [OPENED]);
  answer = talks(async function* () {
    yield { ...OPENED, pid: 1.5 };
  });
  await rejects(Array.fromAsync(await open()), 'internal', /breaks the contract/);
});

test('what is no WebSocket, or of a web page, gets nothing', { timeout: 30_000 }, async () => {
  answer = async () => assert.fail('the handler was asked');
  const status = async (headers: Record<string, string>, path = url()) =>
    (await ask(d.socket, { path, headers })).status;
  assert.equal(await status({}), 400);
  assert.equal(await status({ ...UPGRADE, origin: 'http://localhost' }), 403);
  assert.equal(await status({ ...UPGRADE, 'sec-websocket-key': 'short' }), 400);
  assert.equal(await status({ ...UPGRADE, upgrade: 'h2c' }), 400);
  assert.equal(await status(UPGRADE, url('?cols=x')), 400);
  assert.equal(await status(UPGRADE, '/v1/nowhere'), 404);
  assert.equal(await status(UPGRADE, '/v1/vms/web'), 422, 'an operation that needs none is done as ever');
  const page = new WebSocket(`ws://x${url()}`, {
    createConnection: () => connect(d.socket),
    origin: 'https://evil.example',
  });
  const [refusal] = await Promise.race([
    new Promise<[number]>(resolve => page.once('unexpected-response', (_req, res) => resolve([res.statusCode ?? 0]))),
    new Promise<[string]>(resolve => page.once('open', () => resolve(['open']))),
  ]);
  assert.equal(refusal, 403);
  page.on('error', () => {}).terminate();
});

test('a refused upgrade whose client does not go holds no door open, nor does one that waits', {
  timeout: 60_000,
}, async () => {
  const asked = Promise.withResolvers<void>();
  await using other = await testDoor({
    'vm.get': async () => {
      asked.resolve();
      return new Promise<never>(() => {});
    },
  });
  const head = Object.entries(UPGRADE).map(([name, value]) => `${name}: ${value}\r\n`);
  const begin = (path: string) => {
    const socket = connect({ path: other.socket, allowHalfOpen: true });
    socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\n${head.join('')}\r\n`);
    return socket;
  };
  const refused = begin('/v1/nowhere');
  const waiting = begin('/v1/vms/web').on('error', () => {});
  try {
    assert.match(Buffer.concat(await Array.fromAsync(refused)).toString(), /^HTTP\/1.1 404/);
    await asked.promise;
    await withDeadline('the end of the door', 20_000, other.close());
  } finally {
    refused.destroy();
    waiting.destroy();
  }
});

/** A handler that tells how it went. */
const witness = (
  output: () => AsyncIterable<Uint8Array | TerminalMessage>,
  take: (piece: Buffer | TerminalSay) => Promise<void> = nothing,
) => {
  const told = { aborted: false, returned: false };
  answer = async ctx => {
    ctx.signal.addEventListener('abort', () => {
      told.aborted = true;
    });
    const whole = async function* () {
      try {
        yield* output();
      } finally {
        told.returned = true;
      }
    };
    return { output: whole(), take };
  };
  return told;
};

test('messages that are none end it, and say why', { timeout: 30_000 }, async () => {
  const bad = async (data: string | Buffer, binary = false) => {
    const told = witness(async function* () {
      for (;;) {
        yield Buffer.from('.');
        await sleep(20);
      }
    });
    const raw = new WebSocket(`ws://x${url()}`, { createConnection: () => connect(d.socket) });
    let last = '';
    raw.on('message', (text, bytes) => {
      if (!bytes) last = String(text);
    });
    const code = new Promise<number>(resolve => raw.once('close', resolve));
    raw.on('error', () => {}).once('open', () => raw.send(data, { binary }));
    const got = [await code, last === '' ? '' : JSON.parse(last).type, last === '' ? '' : JSON.parse(last).code];
    await poll('the end of the handler', 5000, () => (told.aborted && told.returned) || undefined);
    return got;
  };
  for (const text of [
    '',
    'x',
    '{}',
    '[]',
    'null',
    '{"type":"resize","cols":0,"rows":0}',
    '{"type":"resize","cols":65536,"rows":1}',
    '{"type":"other"}',
    `"${'x'.repeat(70_000)}"`,
  ])
    assert.deepEqual(await bad(text), [1011, 'fault', 'invalid'], text.slice(0, 50));
  assert.equal((await bad(Buffer.alloc(2 * 1024 * 1024), true))[0], 1009, 'too big a frame');
  assert.equal((await bad(Buffer.from([0xff, 0xfe]), false))[0], 1007, 'text that is no UTF-8');
});

test('bytes of no sense after the upgrade end it', { timeout: 30_000 }, async () => {
  const told = witness(async function* () {
    yield OPENED;
    await sleep(60_000, undefined, { ref: false });
  });
  const socket = connect(d.socket);
  const head = Object.entries({ host: 'x', ...UPGRADE }).map(([k, v]) => `${k}: ${v}\r\n`);
  socket.on('error', () => {});
  const closed = new Promise(resolve => socket.once('close', resolve));
  // in one write: what comes with the request is read as well
  socket.end(Buffer.concat([Buffer.from(`GET ${url()} HTTP/1.1\r\n${head.join('')}\r\n`), Buffer.alloc(3000, 0xff)]));
  socket.resume();
  await closed;
  await poll('the end of the handler', 5000, () => told.aborted || undefined);
});

test('a client that never reads holds the output, and nobody else', { timeout: 60_000 }, async () => {
  let given = 0;
  const told = witness(async function* () {
    for (;;) {
      given += 65_536;
      yield Buffer.alloc(65_536);
    }
  });
  const talk = await open();
  await sleep(500);
  const before = given;
  await sleep(300);
  assert.equal(given, before, 'it stands still');
  assert.ok(given < 4 * 1024 * 1024, `${given} bytes were given`);
  let taken = 0;
  for await (const piece of talk) {
    taken += (piece as Buffer).length;
    if (taken > 20 * 1024 * 1024) break; // leaving closes it
  }
  await poll('the end of the handler', 5000, () => (told.aborted && told.returned) || undefined);
});

test('a handler that takes nothing holds the client, and its memory', { timeout: 60_000 }, async () => {
  let taken = 0;
  const gate = Promise.withResolvers<void>();
  witness(
    async function* () {
      yield OPENED;
      await gate.promise;
      await poll('all of it', 30_000, () => taken === 320 * 65_536 || undefined);
      yield EXIT;
    },
    async piece => {
      await gate.promise;
      if (Buffer.isBuffer(piece)) taken += piece.length;
    },
  );
  const talk = await open();
  let sent = 0;
  const sending = (async () => {
    for (let i = 0; i < 320; i++) {
      await talk.send(Buffer.alloc(65_536));
      sent++;
    }
  })();
  await sleep(500);
  assert.ok(sent < 100, `${sent} of 320 were taken by nobody`);
  gate.resolve();
  assert.deepEqual(await Array.fromAsync(talk), [OPENED, EXIT]);
  await sending;
});

test('whoever leaves is seen to leave; a daemon that stops says so', { timeout: 60_000 }, async () => {
  const forever = async function* () {
    yield OPENED;
    await sleep(60_000, undefined, { ref: false });
  };
  const gone = (told: { aborted: boolean; returned: boolean }) =>
    poll('the end of the handler', 5000, () => told.aborted || undefined);
  let told = witness(forever);
  const closed = await open();
  closed.close();
  assert.deepEqual(await Array.fromAsync(closed), []);
  await gone(told);
  told = witness(forever);
  const abort = new AbortController();
  const aborted = await d.nexus.terminal.open({ vm: 'web' }, { signal: abort.signal });
  const reading = Array.fromAsync(aborted);
  abort.abort(new Error('no more'));
  await assert.rejects(reading, /no more/);
  await gone(told);
  told = witness(forever);
  const other = new Nexus({ socket: d.socket });
  const left = await other.terminal.open({ vm: 'web' });
  await other[Symbol.asyncDispose]();
  await left.over;
  await gone(told);
  told = witness(forever);
  await using second = await testDoor({ 'terminal.open': (ctx, input) => answer(ctx, input) });
  const kept = await second.nexus.terminal.open({ vm: 'web' });
  const start = performance.now();
  const end = rejects(Array.fromAsync(kept), 'canceled', /The daemon is stopping/);
  await second.close();
  await end;
  assert.ok(performance.now() - start < 4000, 'its door does not wait for it');
  await gone(told);
  await assert.rejects(new Nexus({ socket: '/nonexistent/s' }).terminal.open({ vm: 'web' }), Unreachable);
});
