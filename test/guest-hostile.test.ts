/** A guest that lies, floods, stalls or says nothing: faults for the caller, bounded memory, a daemon that goes on. */
import assert from 'node:assert/strict';
import http2, { type ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { duplexPair, Readable } from 'node:stream';
import { test } from 'node:test';
import { pino } from 'pino';
import { ExecSpec } from '../src/api/exec.ts';
import { Fault } from '../src/api/fault.ts';
import type { Guest } from '../src/guest/guest.ts';
import type { Asked } from '../src/guest/wire.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { ask, FACTS, rig, ring, speaker } from './kit/rig.ts';

const MIB = 1024 * 1024;
const soon = () => AbortSignal.timeout(20_000);

const run = async (guest: Guest, argv = ['x']) => {
  const stream = await guest.exec(
    { ...ExecSpec.parse({ argv }), id: `exec_${Math.random()}`.replace('.', '') },
    { signal: soon() },
  );
  for await (const _ of stream);
  return await stream.result;
};

const isGuestFault = (error: unknown) => error instanceof Fault && error.code === 'guest';

const GOOD = { 'nexus-exit-code': '0', 'nexus-timed-out': '0', 'nexus-duration-us': '1' };

/** An answer with this body and these trailers. */
const says = (body: Buffer, trailers?: http2.OutgoingHttpHeaders) => (stream: ServerHttp2Stream) => {
  stream.respond({ ':status': 200, 'nexus-exec-pid': '7' }, { waitForTrailers: trailers !== undefined });
  stream.on('wantTrailers', () => stream.sendTrailers(trailers ?? {}));
  stream.end(body);
};

const frame = (channel: number, length: number, data = Buffer.alloc(0)): Buffer => {
  const head = Buffer.alloc(5);
  head[0] = channel;
  head.writeUInt32BE(length, 1);
  return Buffer.concat([head, data]);
};

const LIES: Record<string, (stream: ServerHttp2Stream) => void> = {
  'an unknown channel': says(frame(9, 1, Buffer.from('x')), GOOD),
  'a frame of 4 GiB': says(frame(1, 0xffffffff), GOOD),
  'a gap of 3 bytes': says(frame(3, 3, Buffer.from([1, 0, 0])), GOOD),
  'a frame cut off': says(frame(1, 10, Buffer.from('short')), GOOD),
  'no trailers': says(frame(1, 1, Buffer.from('x'))),
  'no body and no trailers': says(Buffer.alloc(0)),
  'trailers without a result': says(Buffer.alloc(0), { 'nexus-timed-out': '0', 'nexus-duration-us': '1' }),
  'a result twice': says(Buffer.alloc(0), { ...GOOD, 'nexus-exit-code': ['0', '1'] }),
  'an impossible result': says(Buffer.alloc(0), { ...GOOD, 'nexus-exit-code': '1e9' }),
  'no pid': stream => stream.respond({ ':status': 200 }, { endStream: true }),
  'a pid of text': stream => stream.respond({ ':status': 200, 'nexus-exec-pid': 'init' }, { endStream: true }),
  'an id of another form': stream =>
    stream.respond({ ':status': 200, 'nexus-exec-pid': '7', 'nexus-exec-id': '../a b' }, { endStream: true }),
  'a status of 302': stream => stream.respond({ ':status': 302 }, { endStream: true }),
  'an error of 1 MiB': stream => {
    stream.respond({ ':status': 500 });
    stream.end(Buffer.alloc(MIB, 'x'));
  },
  'an error that is no JSON': stream => {
    stream.respond({ ':status': 422 });
    stream.end('{{{');
  },
};

for (const [name, answer] of Object.entries(LIES)) {
  test(`exec: ${name} is a fault of the guest`, async () => {
    await using r = await rig(speaker(answer));
    await ring(r);
    await r.guest.ready(soon());
    await assert.rejects(run(r.guest), isGuestFault);
    await r.guest.ping(soon());
  });
}

test('exec: an honest answer is taken', async () => {
  await using r = await rig(speaker(says(frame(1, 2, Buffer.from('ok')), GOOD)));
  await ring(r);
  assert.equal((await run(r.guest)).exit_code, 0);
});

test('what the guest says of a refusal reaches no terminal as it is', async () => {
  const answer = (stream: ServerHttp2Stream) => {
    stream.respond({ ':status': 422 });
    stream.end(JSON.stringify({ code: 'no_program', detail: `Cannot \u001b[2J\u202e${'x'.repeat(5000)}.` }));
  };
  await using r = await rig(speaker(answer));
  await ring(r);
  await assert.rejects(run(r.guest), error => {
    assert.ok(error instanceof Fault && error.code === 'not_found' && error.reason === 'no_program');
    assert.ok(error.message.length < 500 && !error.message.includes('\u001b') && !error.message.includes('\u202e'));
    return true;
  });
});

test('a thousand headers, or one of a megabyte, end the request or the connection, not the daemon', async () => {
  const many = Object.fromEntries(Array.from({ length: 1000 }, (_, n) => [`x-${n}`, 'y']));
  await using r = await rig(
    speaker(stream => stream.respond({ ':status': 200, 'nexus-exec-pid': '7', ...many }, { endStream: true })),
  );
  await ring(r);
  const id = 'exec_headers';
  const started = r.guest.exec({ ...ExecSpec.parse({ argv: ['x'] }), id }, { signal: AbortSignal.timeout(1500) });
  await assert.rejects(started);
  await r.guest.ping(soon());
});

test('output that is broken off again and again ends in a fault', async () => {
  await using r = await rig(
    speaker(stream => {
      stream.respond({ ':status': 200, 'nexus-exec-pid': '7' });
      setTimeout(() => stream.destroy(new Error('broken off')), 2);
    }),
  );
  await ring(r);
  await assert.rejects(run(r.guest), /again and again/);
});

const TTY = { cols: 80, rows: 24 };
const shell: Asked = { id: 'exec_tty', argv: [], env: {}, stdin: 'none', on_disconnect: 'keep', tty: TTY };
const NONE = { code: 'not_found', detail: 'the agent does not know this request' };

test('an agent that is older than a request is told apart from a command that is not there', async () => {
  const answer = (stream: ServerHttp2Stream) => {
    stream.respond({ ':status': 404 });
    stream.end(JSON.stringify(NONE));
  };
  await using r = await rig(speaker(answer));
  await ring(r);
  const older = (error: unknown) =>
    error instanceof Fault && error.code === 'unsupported' && /older/.test(error.message);
  await assert.rejects(r.guest.viewTerminal(shell, soon()), older);
  await assert.rejects(r.guest.resizeExec('exec_1', 80, 24, soon()), older);
  await assert.rejects(r.guest.update({ path: '/nowhere', sha256: '' }, soon()), older);
});

test('lists of commands that are none, or too long, are faults; a long one is taken', async () => {
  let said = '';
  await using r = await rig(
    speaker(stream => {
      stream.respond({ ':status': 200 });
      stream.end(said);
    }),
  );
  await ring(r);
  const one = { id: 'exec_1', pid: 7, running: true };
  const bad: unknown[] = [
    [],
    { execs: [{ ...one, id: 'a/b' }] },
    { execs: [{ ...one, command: 'x'.repeat(2000) }] },
    { execs: [{ ...one, session: '\u001b[2J' }] },
    { execs: [{ ...one, exit_signal: '\n' }] },
    { execs: [{ ...one, exit_code: 256 }] },
    { execs: Array.from({ length: 5000 }, () => one) },
    { execs: [{ ...one, more: 'x'.repeat(3 * MIB) }] },
  ];
  for (const list of [...bad.map(value => JSON.stringify(value)), '{', '']) {
    said = list;
    await assert.rejects(r.guest.execs(soon()), isGuestFault, list.slice(0, 80));
  }
  said = JSON.stringify({ execs: Array.from({ length: 2000 }, () => ({ ...one, command: 'y'.repeat(160) })) });
  assert.equal((await r.guest.execs(soon())).length, 2000);
});

test('a terminal that takes no keys, or answers them with nonsense, holds its own viewer alone', async () => {
  let keys: (stream: ServerHttp2Stream) => void = stream => stream.pause().respond({ ':status': 200 });
  const serve = (socket: Socket) => {
    const session = http2.performServerHandshake(socket);
    session.on('error', () => {});
    session.on('stream', (stream, headers) => {
      stream.on('error', () => {});
      const path = String(headers[':path']);
      if (path === '/v1/ping') stream.resume().respond({ ':status': 204 }, { endStream: true });
      else if (path.endsWith('/stdin')) keys(stream);
      else stream.resume().respond({ ':status': 200, 'nexus-exec-pid': '7', 'nexus-exec-from': 'x' });
    });
  };
  await using r = await rig(serve);
  await ring(r);
  const view = () => r.guest.viewTerminal(shell, soon());
  const stuck = await view();
  const writing = stuck.keys.write(Buffer.alloc(MIB));
  assert.equal(await Promise.race([writing.then(() => 'taken'), sleep(300).then(() => 'waits')]), 'waits');
  await r.guest.ping(soon());
  stuck.output.detach();
  await writing; // let go with its viewer
  for (const answer of ['{"code":"invalid","detail":"no"}', 'x', '']) {
    keys = stream => {
      stream.resume().respond({ ':status': 400 });
      stream.end(answer);
    };
    const { output, keys: board } = await view();
    await assert.rejects(async () => {
      for (let i = 0; i < 100; i++) {
        await board.write(Buffer.from('x'));
        await sleep(10);
      }
    }, Fault);
    output.detach();
  }
  keys = stream => {
    stream.respond({ ':status': 200 });
    setTimeout(() => stream.destroy(), 5);
  };
  const reset = await view();
  for (let i = 0; i < 20; i++) await reset.keys.write(Buffer.from('x'));
  reset.output.detach();
  await r.guest.ping(soon());
});

test('ports: what no port says is a fault of that connection alone', async () => {
  let answer: (stream: ServerHttp2Stream) => void = () => {};
  await using r = await rig(speaker(stream => answer(stream)));
  await ring(r);
  const bytes = (hex: string, then: (stream: ServerHttp2Stream) => void) => (stream: ServerHttp2Stream) => {
    stream.respond({ ':status': 200 });
    stream.write(Buffer.from(hex, 'hex'), () => then(stream));
  };
  const ends = (stream: ServerHttp2Stream) => void stream.end();
  const lies: Record<string, (stream: ServerHttp2Stream) => void> = {
    'a frame of 4 GiB': bytes('ffffffff', () => {}),
    'bytes after the end': bytes('000000000000000161', () => {}),
    'an end of the stream alone': bytes('0000000161', ends),
    'a frame cut off': bytes('0000000a61', ends),
    'a reset': bytes('0000000161', stream => void stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR)),
    'a reset that says all is well': bytes('0000000161', stream => void stream.close(http2.constants.NGHTTP2_NO_ERROR)),
  };
  for (const [name, lie] of Object.entries(lies)) {
    answer = lie;
    const port = await r.guest.openPort({ port: 80 }, soon());
    await assert.rejects(Array.fromAsync(port), isGuestFault, name);
  }
  for (const [status, body] of [
    [302, ''],
    [422, '{{{'],
    [422, '{"code":"refused","detail":"\\u001b[2J"}'],
    [500, 'x'.repeat(200_000)],
  ] as const) {
    answer = stream => {
      stream.respond({ ':status': status });
      stream.end(body);
    };
    await assert.rejects(r.guest.openPort({ port: 80 }, soon()), error => {
      assert.ok(isGuestFault(error) && error instanceof Error && !error.message.includes('\u001b'), String(status));
      return true;
    });
  }
  answer = () => {};
  await assert.rejects(r.guest.openPort({ port: 80 }, AbortSignal.timeout(300)));
  answer = bytes('000000016100000000', ends);
  const port = await r.guest.openPort({ port: 80 }, soon());
  assert.deepEqual(await Array.fromAsync(port), [Buffer.from('a'), 'end']);
  await r.guest.ping(soon());
});

test('a peer that never says a word, or only garbage, is unreachable', { concurrency: true }, async t => {
  const garbage = Buffer.alloc(65_536, 'HTTP/1.1 400 Bad Request\r\n\r\n');
  const peers: Record<string, (socket: Socket) => void> = {
    silent: socket => socket.resume(),
    'never read': () => {},
    'ends at once': socket => socket.end(),
    'resets at once': socket => socket.destroy(),
    garbage: socket => {
      const go = () => {
        while (!socket.destroyed && socket.write(garbage));
      };
      socket.on('drain', go);
      go();
    },
  };
  const tests = Object.entries(peers).map(([name, serve]) =>
    t.test(name, async () => {
      await using r = await rig(serve);
      await ring(r);
      await poll('unreachable', 10_000, () => r.states.includes('unreachable') || undefined);
      assert.deepEqual(r.states, ['unreachable']);
      await assert.rejects(r.guest.ready(AbortSignal.timeout(50)));
      assert.ok(r.opened() < 40, `it was tried ${r.opened()} times`);
    }),
  );
  await Promise.all(tests);
});

/** An HTTP/2 frame: RFC 9113, section 4.1. */
const h2 = (type: number, flags: number, stream: number, payload: Buffer): Buffer => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};

const flood = async (socket: Socket, piece: Buffer, limit: number): Promise<void> => {
  for (let sent = 0; sent < limit && !socket.destroyed; sent += piece.length) {
    if (!socket.write(piece)) await new Promise(resolve => socket.once('drain', resolve).once('close', resolve));
  }
};

const FLOODS: Record<string, Buffer> = {
  pings: Buffer.concat(Array.from({ length: 1000 }, () => h2(6, 0, 0, Buffer.alloc(8)))),
  settings: Buffer.concat(Array.from({ length: 1000 }, () => h2(4, 0, 0, Buffer.alloc(0)))),
  'frames of an unknown type': Buffer.concat(Array.from({ length: 1000 }, () => h2(99, 0, 0, Buffer.alloc(100)))),
  'data for no stream': Buffer.concat(Array.from({ length: 1000 }, () => h2(0, 0, 12345, Buffer.alloc(100)))),
};

for (const [name, piece] of Object.entries(FLOODS)) {
  test(`a flood of ${name} fills no memory and stops no other guest`, async () => {
    await using other = await rig(speaker(says(Buffer.alloc(0), GOOD)));
    await ring(other);
    await other.guest.ready(soon());
    const before = process.memoryUsage().rss;
    await using r = await rig(socket => {
      socket.resume();
      socket.write(h2(4, 0, 0, Buffer.alloc(0)));
      flood(socket, piece, 20 * MIB);
    });
    await ring(r);
    for (let n = 0; n < 20; n++) {
      assert.equal((await run(other.guest)).exit_code, 0);
      await new Promise(resolve => setTimeout(resolve, 20));
    }
    const grown = (process.memoryUsage().rss - before) / MIB;
    assert.ok(grown < 150, `grew by ${grown} MiB`);
  });
}

test('output in crumbs of a byte, which nobody reads, ends the connection before it fills memory', async t => {
  // HPACK: status 200 is static index 8; the pid as a literal without indexing.
  const literal = (text: string) => Buffer.concat([Buffer.from([text.length]), Buffer.from(text, 'latin1')]);
  const head = Buffer.concat([Buffer.from([0x88, 0x00]), literal('nexus-exec-pid'), literal('7')]);
  const serve = (socket: Socket) => {
    socket.write(h2(4, 0, 0, Buffer.alloc(0)));
    let answered = 0;
    socket.on('data', (chunk: Buffer) => {
      if (chunk.length > 24 && answered === 0) socket.write(h2(4, 1, 0, Buffer.alloc(0)));
      // The first request is the ping (stream 1), the others are execs; a stream's headers are told by frame type 1.
      for (let at = chunk.indexOf('PRI') === 0 ? 24 : 0; at + 9 <= chunk.length; at += 9 + chunk.readUIntBE(at, 3)) {
        if (chunk[at + 3] !== 1) continue;
        const id = chunk.readUInt32BE(at + 5);
        answered++;
        if (answered === 1)
          socket.write(h2(1, 5, id, Buffer.from([0x89]))); // 204
        else {
          socket.write(h2(1, 4, id, head));
          const crumbs = Buffer.concat(Array.from({ length: 6000 }, () => h2(0, 0, id, Buffer.from([1]))));
          for (let n = 0; n < 40 && !socket.destroyed; n++) socket.write(crumbs);
        }
      }
    });
  };
  const lines: string[] = [];
  await using r = await rig(serve, { log: pino({ level: 'info' }, { write: line => lines.push(line) }) });
  await ring(r);
  await r.guest.ready(soon());
  const before = process.memoryUsage().rss;
  const opened = r.opened();
  const open = Array.from({ length: 20 }, (_, n) =>
    r.guest
      .exec({ ...ExecSpec.parse({ argv: ['x'] }), id: `exec_crumb${n}` }, { signal: soon() })
      .catch(() => undefined),
  );
  await poll('another connection', 10_000, () => r.opened() > opened || undefined);
  const grown = (process.memoryUsage().rss - before) / MIB;
  t.diagnostic(`grew by ${Math.round(grown)} MiB`);
  assert.ok(grown < 250, `grew by ${grown} MiB`);
  assert.ok(
    lines.some(line => line.includes('frames without content')),
    lines.join(''),
  );
  await r[Symbol.asyncDispose]();
  await Promise.all(open);
});

test('a long upload is no attack, however often the guest acknowledges it', { timeout: 120_000 }, async () => {
  const window = (stream: number, bytes: number) => {
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(bytes);
    return h2(8, 0, stream, payload);
  };
  let [answered, stream, count, told] = [0, 0, 0, 0];
  const serve = (socket: Socket) => {
    socket.write(Buffer.concat([h2(4, 0, 0, Buffer.alloc(0)), h2(4, 1, 0, Buffer.alloc(0))]));
    socket.on('data', (chunk: Buffer) => {
      for (let at = chunk.indexOf('PRI') === 0 ? 24 : 0; stream === 0 && at + 9 <= chunk.length; ) {
        const id = chunk.readUInt32BE(at + 5);
        const asked = chunk[at + 3] === 1;
        if (asked && answered === 2) stream = id;
        else if (asked) answered += Number(socket.write(h2(1, 5, id, Buffer.from([0x89])))); // 204
        at += 9 + chunk.readUIntBE(at, 3);
      }
      if (stream === 0) return;
      count += chunk.length;
      // Twice as often as the agent does.
      const many = Math.floor(count / 2048) - told;
      told += many;
      const taken = Buffer.concat([window(0, 2048), window(stream, 2048)]);
      if (many > 0) socket.write(Buffer.concat(Array.from({ length: many }, () => taken)));
    });
  };
  await using r = await rig(serve, { ping_ms: 60_000 });
  await ring(r);
  await r.guest.ready(soon());
  await poll('ping and clock', 5000, async () => answered === 2 || undefined);
  const opened = r.opened();
  let sent = 0;
  const abort = new AbortController();
  const zeros = async function* () {
    for (const chunk = Buffer.alloc(MIB); sent < 700; sent++) yield chunk;
    abort.abort();
  };
  await assert.rejects(r.guest.files.write('/x', {}, Readable.from(zeros()), abort.signal));
  assert.deepEqual([sent, r.opened()], [700, opened]);
});

test('egress: only the known requests, of a bounded size, from an agent that fits', async () => {
  await using r = await rig(speaker(says(Buffer.alloc(0), GOOD)));
  assert.equal(await ask(r.egress(), '/v1/other', '{}'), 404);
  assert.equal(await ask(r.egress(), '/v1/bell', 'no json'), 400);
  assert.equal(await ask(r.egress(), '/v1/bell', JSON.stringify({ ...FACTS, agent_id: '../..' })), 400);
  await assert.rejects(ask(r.egress(), '/v1/bell', Buffer.alloc(MIB)));
  assert.equal(await ask(r.egress(), '/v1/ending', '{"kind":"explode","by":"guest"}'), 400);
  assert.equal(r.opened(), 0, 'nothing of this is a bell');
  assert.equal(await ring(r, { ...FACTS, generation: 2 }), 400);
  await assert.rejects(r.guest.ready(soon()), { code: 'unsupported', message: /generation 2/ });
  assert.equal(await ring(r, { ...FACTS, os: 'evil\u001b[2J', later: 1 }), 204);
  assert.equal((await r.guest.ready(soon())).os, 'evil');
});

test('egress: bytes that are no HTTP/2 end the connection', async () => {
  await using r = await rig(socket => socket.resume());
  const [ours, theirs] = duplexPair();
  const served = r.guest.serveEgress(ours);
  theirs.on('error', () => {}).resume();
  theirs.write(Buffer.alloc(100_000, 'x'));
  await served;
  assert.equal(ours.destroyed, true);
});

test('a reboot is noticed by the bell: the old connection is not waited for', async () => {
  await using r = await rig(speaker(says(Buffer.alloc(0), GOOD)));
  await ring(r);
  await r.guest.ready(soon());
  assert.equal(await ring(r, { ...FACTS, agent_id: '1'.repeat(32) }), 204);
  const facts = await r.guest.ready(soon());
  assert.equal(facts.agent_id, '1'.repeat(32));
  assert.deepEqual(r.states, ['ready', 'connecting', 'ready']);
  assert.equal(r.opened(), 2);
});

test('a control stream that is no socket serves as well, and is destroyed once', async () => {
  let destroyed = 0;
  const open = async () => {
    const [ours, theirs] = duplexPair();
    const session = http2.performServerHandshake(theirs);
    session.on('stream', stream => stream.respond({ ':status': 204 }, { endStream: true }));
    session.on('error', () => {});
    theirs.on('error', () => {});
    const destroy = ours._destroy.bind(ours);
    ours._destroy = (error, done) => {
      destroyed++;
      destroy(error, done);
    };
    return ours;
  };
  await using r = await rig(() => {}, { open });
  await ring(r);
  await r.guest.ready(soon());
  await r.guest.ping(soon());
  await r.guest[Symbol.asyncDispose]();
  await poll('its destruction', 5000, () => destroyed > 0 || undefined);
  assert.equal(destroyed, 1);
});
