/** Ports of a guest: bytes, half-closes and resets both ways, HTTP and WebSockets through nexusctl port. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer as createHttp, get, request } from 'node:http';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { after, test } from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { parsePair } from '../src/cli/port.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { descriptors } from './kit/audit.ts';
import { boxed, rejects } from './kit/behave.ts';

const { w } = await boxed();
const servers: Server[] = [];
after(() => {
  for (const server of servers) server.close();
});

/** The stand-in's guest is this host: a server here is one there. */
const behind = async (serve: (socket: Socket) => void, host = '127.0.0.1'): Promise<number> => {
  const server = createServer({ allowHalfOpen: true }, socket => {
    socket.on('error', () => {});
    serve(socket);
  });
  return await listening(server, host);
};

const listening = async (server: Server, host = '127.0.0.1'): Promise<number> => {
  servers.push(server);
  server.listen(0, host);
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
};

const free = async (): Promise<number> => {
  const server = createServer();
  const port = await listening(server);
  servers.pop();
  server.close();
  return port;
};

const echo = (socket: Socket) => void socket.pipe(socket);
const open = (port: number) => w.client.port.open({ vm: 'box', port });

test('pairs of ports are read as they are meant', () => {
  assert.deepEqual(parsePair('3000:8080'), { local: 3000, guest: 8080 });
  assert.deepEqual(parsePair('8080'), { local: 8080, guest: 8080 });
  for (const any of [':80', '0:80']) assert.deepEqual(parsePair(any), { local: 0, guest: 80 });
  for (const bad of ['', ':', '80:', '80:0', '0', '65536', '1:65536', 'a:b', '1:2:3', '-1:5', '1.5', ' 80', '80:8e1'])
    assert.throws(() => parsePair(bad), { code: 'invalid' }, bad);
});

test('bytes pass unchanged both ways, each end by itself', { timeout: 60_000 }, async () => {
  const bytes = randomBytes(5_000_000);
  const talk = await open(await behind(echo));
  const sending = (async () => {
    for (let at = 0; at < bytes.length; at += 50_000) await talk.send(bytes.subarray(at, at + 50_000));
    await talk.send({ type: 'end' });
  })();
  const pieces = await Array.fromAsync(talk);
  await sending;
  assert.deepEqual(pieces.pop(), { type: 'end' });
  assert.ok(Buffer.concat(pieces as Buffer[]).equals(bytes));
  const late = Promise.withResolvers<string>();
  const first = await open(
    await behind(socket => {
      socket.end('bye'); // its own end first
      let text = '';
      socket.setEncoding('utf8').on('data', more => {
        text += more;
      });
      socket.once('end', () => late.resolve(text));
    }),
  );
  const said: unknown[] = [];
  for await (const piece of first) {
    said.push(piece instanceof Uint8Array ? Buffer.from(piece).toString() : piece.type);
    if (said.at(-1) !== 'end') continue;
    await first.send(Buffer.from('still '));
    await first.send(Buffer.from('there'));
    await first.send({ type: 'end' });
  }
  assert.deepEqual(said, ['bye', 'end']);
  assert.equal(await late.promise, 'still there');
  const six = await behind(echo, '::1').catch(() => undefined);
  if (six === undefined) return;
  const talk6 = await open(six);
  await talk6.send(Buffer.from('6'));
  await talk6.send({ type: 'end' });
  assert.deepEqual(await Array.fromAsync(talk6), [Buffer.from('6'), { type: 'end' }]);
});

test('what cannot be reached, and what breaks, says so', { timeout: 60_000 }, async () => {
  const port = await free();
  const refused = await rejects(open(port), 'guest', new RegExp(`port ${port} of VM 'box': nothing listens there`));
  assert.equal(refused.reason, 'refused');
  await rejects(open(0), 'invalid');
  await rejects(open(65_536), 'invalid');
  await rejects(w.client.port.open({ vm: 'nobody', port: 80 }), 'not_found');
  const reset = await behind(socket => void socket.once('data', () => socket.resetAndDestroy()));
  const talk = await open(reset);
  await talk.send(Buffer.from('x'));
  const broken = await rejects(Array.fromAsync(talk), 'guest', /was reset/);
  assert.equal(broken.reason, 'reset');
  const gone = Promise.withResolvers<boolean>();
  const left = await open(await behind(socket => void socket.resume().once('close', broke => gone.resolve(broke))));
  await left.send(Buffer.from('x'));
  left.close();
  assert.equal(await gone.promise, true, 'a client that leaves in the middle is a reset there');
});

test('nobody who stalls holds another; more connections than streams wait their turn; nothing stays', {
  timeout: 120_000,
}, async () => {
  const zeros = Buffer.alloc(65_536);
  const flood = await behind(socket => {
    const more = () => {
      while (!socket.destroyed && socket.write(zeros));
    };
    socket.on('drain', more);
    more();
  });
  const ping = async () => {
    const talk = await open(echoing);
    await talk.send(Buffer.from('ping'));
    await talk.send({ type: 'end' });
    assert.deepEqual(
      Buffer.concat((await Array.fromAsync(talk)).filter(p => p instanceof Uint8Array)).toString(),
      'ping',
    );
  };
  const echoing = await behind(echo);
  await ping();
  await sleep(200);
  const before = await descriptors(w);
  const stalled = await Promise.all(Array.from({ length: 20 }, () => open(flood)));
  await Promise.all(Array.from({ length: 200 }, ping));
  for (const talk of stalled) talk.close();
  await poll('the descriptors', 20_000, async () => (await descriptors(w)) <= before + 5 || undefined);
  assert.ok(!/Warning|"level":50/.test(await w.log()), await w.log());
});

interface Ports extends AsyncDisposable {
  child: ChildProcess;
  ports: number[];
  stderr(): string;
}

/** nexusctl port, once it listens. */
const forward = async (...pairs: string[]): Promise<Ports> => {
  const main = join(import.meta.dirname, '../src/main.ts');
  const child = spawn(process.execPath, [main, 'nexusctl', '--socket', w.socket, 'port', 'box', ...pairs], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', text => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', text => {
    stderr += text;
  });
  const ports = await poll('the ports', 30_000, () => {
    if (child.exitCode !== null) throw new Error(`it ended: ${stderr}`);
    const found = [...stdout.matchAll(/^127\.0\.0\.1:(\d+) is port \d+ of VM box$/gm)].map(m => Number(m[1]));
    return found.length === pairs.length ? found : undefined;
  });
  return {
    child,
    ports,
    stderr: () => stderr,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    },
  };
};

test('HTTP and WebSockets through nexusctl port', { timeout: 120_000 }, async () => {
  const http = createHttp((req, res) => {
    const hash = createHash('sha256');
    req.on('data', chunk => hash.update(chunk));
    req.on('end', () => res.end(`${req.method} ${req.url} ${hash.digest('hex')}`));
  });
  const chat = new WebSocketServer({ server: http });
  chat.on('connection', socket => socket.on('message', (data, binary) => socket.send(data, { binary })));
  const guest = await listening(http);
  const wished = await free();
  await using p = await forward(`${wished}:${guest}`, `:${guest}`);
  assert.equal(p.ports[0], wished);
  for (const port of p.ports) {
    const body = randomBytes(3_000_000);
    const req = request({ port, method: 'POST', path: '/up' });
    Readable.from([body]).pipe(req);
    const [res] = await once(req, 'response');
    let text = '';
    for await (const chunk of res.setEncoding('utf8')) text += chunk;
    assert.equal(text, `POST /up ${createHash('sha256').update(body).digest('hex')}`);
  }
  const many = await Promise.all(
    Array.from({ length: 60 }, async (_, n) => {
      const req = get({ port: p.ports[1], path: `/${n}`, agent: false });
      const [res] = await once(req, 'response');
      let text = '';
      for await (const chunk of res.setEncoding('utf8')) text += chunk;
      return text.split(' ')[1];
    }),
  );
  assert.deepEqual(
    many,
    Array.from({ length: 60 }, (_, n) => `/${n}`),
  );
  const socket = new WebSocket(`ws://127.0.0.1:${wished}/chat`);
  await once(socket, 'open');
  for (const data of [Buffer.from('hello'), randomBytes(500_000)]) {
    socket.send(data);
    const [back] = await once(socket, 'message');
    assert.ok(data.equals(back));
  }
  socket.close();
  assert.equal((await once(socket, 'close'))[0], 1005);
  chat.close();
  p.child.kill('SIGINT');
  assert.deepEqual(await once(p.child, 'exit'), [0, null]);
  assert.equal(p.stderr(), '');
});

test('nexusctl port passes on ends and resets, and says once that nothing listens', { timeout: 120_000 }, async () => {
  const closed = await free();
  const half = await behind(socket => {
    let n = 0;
    socket.on('data', chunk => {
      n += chunk.length;
    });
    socket.once('end', () => socket.end(`${n} bytes`));
  });
  const cut = await behind(socket => void socket.once('data', () => socket.resetAndDestroy()));
  await using p = await forward(`:${closed}`, `:${half}`, `:${cut}`);
  const dial = (port = 0) => {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    const how = new Promise<string>(resolve => {
      socket.once('error', error => resolve('code' in error ? String(error.code) : 'error'));
      socket.once('end', () => resolve('end'));
    });
    return { socket, how };
  };
  for (let i = 0; i < 3; i++) assert.equal(await dial(p.ports[0]).how, 'ECONNRESET');
  const counted = dial(p.ports[1]);
  counted.socket.end(Buffer.alloc(777_777));
  let text = '';
  for await (const chunk of counted.socket.setEncoding('utf8')) text += chunk;
  assert.equal(text, '777777 bytes', 'its end was passed on, and the answer came after it');
  const cutter = dial(p.ports[2]);
  cutter.socket.write('x');
  assert.equal(await cutter.how, 'ECONNRESET');
  assert.equal(p.stderr(), `note: Cannot reach port ${closed} of VM 'box': nothing listens there.\n`);
  const taken = await w.ctl('port', 'box', `${p.ports[0]}:80`);
  assert.deepEqual([taken.code, /it is in use/.test(taken.stderr)], [8, true]);
  const piped = await w.ctl('ports', 'open', 'box', String(half));
  assert.deepEqual([piped.code, piped.stdout], [0, '0 bytes']);
  assert.equal((await w.ctl('port', 'box', 'x')).code, 2);
  assert.equal((await w.ctl('port', 'nobody', '80')).code, 4);
});
