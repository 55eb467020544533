/** Servers, connections and disks that do wrong: what is right in the end lands, all else leaves an empty folder and says why. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Fault } from '../src/api/fault.ts';
import type { JobProgress } from '../src/api/job.ts';
import type { Pipeline } from '../src/api/pipeline.ts';
import { getBytes } from '../src/assets/http.ts';
import { sleep } from '../src/lib/deadline.ts';
import { procStat, run } from '../src/lib/proc.ts';
import { type Lander, lander, TIMES } from './kit/land.ts';
import { sha256, xz } from './kit/layouts.ts';
import { Mirror, type Misdeed, openMirror } from './kit/mirror.ts';
import { archive } from './kit/tar.ts';

let mirror: Mirror;
let t: Lander;
before(async () => {
  [mirror, t] = await Promise.all([openMirror(), lander()]);
});
after(async () => {
  await mirror[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});

const DATA = randomBytes(400_000);
let files = 0;
/** A new stored file and the pipeline that proves it. */
const file = (data: Buffer = DATA): { path: string; pipeline: Pipeline; ranges: () => (string | undefined)[] } => {
  const path = `/file${files++}`;
  const url = mirror.store(path, data);
  return {
    path,
    pipeline: [
      { stage: 'http', url },
      { stage: 'sha256', expect: { hash: sha256(data) } },
    ],
    ranges: () => mirror.seen.filter(s => s.host === 'storage' && s.url.includes(`${path}?`)).map(s => s.headers.range),
  };
};
const deadlines = (ms: number) => ({ times: { ...TIMES, headers_ms: ms, stall_ms: ms } });
const options = { signal: new AbortController().signal, times: TIMES, max_bytes: 1000 };

test('a connection that is cut goes on where it stood', async () => {
  const { path, pipeline, ranges } = file();
  mirror.misbehave(path, { cut: 100_000, times: 3 });
  await t.land(pipeline);
  assert.deepEqual(ranges(), [undefined, 'bytes=100000-', 'bytes=200000-', 'bytes=300000-']);
});

test('a date of change will do to go on, if it is old enough to tell two versions apart', async () => {
  for (const [modified, second] of [
    [3600, 'bytes=100000-'],
    [5, undefined],
  ] as const) {
    const { path, pipeline, ranges } = file();
    mirror.misbehave(path, { modified, cut: 100_000, times: 1 });
    await t.land(pipeline);
    assert.deepEqual(ranges(), [undefined, second]);
  }
});

test('it goes on in the middle of a decompression too', async () => {
  const data = Buffer.alloc(6_000_000, DATA);
  const packed = await xz(data);
  const { path, pipeline } = file(packed);
  mirror.misbehave(path, { cut: packed.length >> 2, times: 3 });
  const landed = await t.land([...pipeline, { stage: 'xz' }, { stage: 'sha256', expect: { hash: sha256(data) } }]);
  assert.equal(landed.file.size_bytes, data.length);
});

test('a server that cannot go on: from the start, and not for ever', async () => {
  for (const deed of [
    { ranges: false, cut: 300_000 },
    { validators: false, cut: 300_000 },
    { changes: true, cut: 300_000 },
  ] as const) {
    const { path, pipeline, ranges } = file();
    mirror.misbehave(path, { ...deed, times: 2 });
    await t.land(pipeline);
    assert.ok(ranges().length >= 2);
    mirror.misbehave(path, deed);
    await t.refused('host', /5 attempts/, pipeline);
  }
});

test('silence, a trickle and a stop are each ended by a deadline', async () => {
  for (const [deed, says] of [
    [{ silent: true }, /gave no answer in 150 ms/],
    [{ stall: 50_000 }, /(bytes came|no answer) in 150 ms/],
    [{ trickle: 5 }, /(bytes came|no answer) in 150 ms/],
  ] as const) {
    const { path, pipeline } = file();
    mirror.misbehave(path, { ...deed, times: 1 });
    await t.land(pipeline, deadlines(500));
    mirror.misbehave(path, deed);
    await t.refused('host', says, pipeline, deadlines(150));
  }
});

test('a reader that is slow is no stall', async () => {
  const data = randomBytes(3_000_000);
  const url = mirror.put('/slow-reader', data);
  const pipeline: Pipeline = [
    { stage: 'http', url },
    { stage: 'sha256', expect: { hash: sha256(data) } },
  ];
  let asleep = 0;
  const landed = await t.land(pipeline, {
    ...deadlines(300),
    // blocks the whole thread: longer than the deadline passes between two chunks
    onProgress: ({ done }) => {
      if (done > 0 && asleep++ < 3) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 400);
    },
  });
  assert.equal(landed.file.size_bytes, data.length);
});

test('redirects: to http, to itself, to a password, to nowhere', async () => {
  const { path, pipeline } = file();
  for (const [deed, code, says] of [
    [{ redirect: 'http://localhost/x' }, 'unverified', /leads to http:\/\/localhost/],
    [{ redirect: 'ftp://localhost/x' }, 'unverified', /only https/],
    [{ redirect: 'https://me:secret@localhost/x' }, 'invalid', /no name and password/],
    [{ redirect: 'https://[' }, 'invalid', /no URL/],
    [{ loop: true }, 'host', /more than 5 times/],
    [{ status: 302 }, 'host', /answers 302/],
  ] as const) {
    mirror.misbehave(path, deed);
    await t.refused(code, says, pipeline);
  }
});

test('a length that is a lie, a page, parts that do not fit', async () => {
  for (const [deed, code, says] of [
    [{ longer: 5000 }, 'unverified', /shorter than the server said/],
    [{ longer: -5000 }, 'unverified', /SHA-256/],
    [{ html: true }, 'unverified', /web page/],
    [{ flip: 200_000 }, 'unverified', /SHA-256/],
  ] as const) {
    const { path, pipeline } = file();
    mirror.misbehave(path, deed);
    await t.refused(code, says, pipeline);
  }
  for (const part of [
    'bytes 0-399999/400000',
    'bytes 100000-399999/500000',
    'bytes 100001-399999/400000',
    'bytes x',
    'bytes 100000-399998/400000',
  ]) {
    const { path, pipeline } = file();
    mirror.misbehave(path, { cut: 100_000, part });
    await t.refused('unverified', /do not fit/, pipeline);
  }
});

test('what comes without a length is whole, or it is not what was proven', async () => {
  const { path, pipeline } = file();
  mirror.misbehave(path, { unsized: true });
  await t.land(pipeline);
  mirror.misbehave(path, { unsized: true, cut: 100_000, times: 1 });
  await t.land(pipeline);
});

test('a ceiling for what comes over the wire, announced or not', async () => {
  const { path, pipeline } = file();
  const limits = { download_bytes: 100_000, output_bytes: 1_000_000 };
  await t.refused('unsupported', /larger than/, pipeline, { limits });
  mirror.misbehave(path, { unsized: true });
  await t.refused('unsupported', /larger than/, pipeline, { limits });
});

test('refusals: what is gone, what may pass, and how long a server may ask to wait', async () => {
  const { path, pipeline, ranges } = file();
  for (const [status, code, attempts] of [
    [404, 'not_found', 1],
    [410, 'not_found', 1],
    [403, 'host', 1],
    [400, 'host', 1],
    [500, 'host', 5],
    [503, 'host', 5],
    [429, 'host', 5],
    [206, 'host', 1],
  ] as const) {
    const before = ranges().length;
    mirror.misbehave(path, { status });
    await t.refused(code, /Cannot f/, pipeline);
    assert.equal(ranges().length - before, attempts, String(status));
  }
  mirror.misbehave(path, { status: 503, headers: { 'retry-after': '1' }, times: 1 });
  const from = performance.now();
  await t.land(pipeline);
  assert.ok(performance.now() - from > 900);
  mirror.misbehave(path, { status: 429, headers: { 'retry-after': '86400' } });
  const error = await t.refused('host', /answers 429/, pipeline);
  assert.match(error.hint ?? '', /86400 s/);
});

test('a token goes to its own host, and a status may be explained by the caller', async () => {
  const { path } = file();
  const url = `${mirror.origin}${path}`;
  const all = { ...options, max_bytes: 1_000_000, token: () => 'secret-token' };
  const { bytes, url: last } = await getBytes(url, all);
  assert.ok(bytes.equals(DATA) && last.origin === mirror.storage);
  const seen = mirror.seen.filter(s => s.url.includes(path)).map(s => [s.host, s.headers.authorization]);
  assert.deepEqual(seen, [
    ['origin', 'Bearer secret-token'],
    ['storage', undefined],
  ]);
  mirror.misbehave(path, { status: 403, headers: { 'x-ratelimit-remaining': '0' } });
  const explain = (status: number, headers: Record<string, unknown>) =>
    new Fault('host', `limit ${status} ${headers['x-ratelimit-remaining']}`);
  await assert.rejects(getBytes(url, { ...all, explain }), (e: Fault) => e.message === 'limit 403 0');
});

/** A server of bare TCP. */
const listening = async (serve: (socket: Socket) => void): Promise<{ server: Server; port: number }> => {
  const server = createServer(socket => {
    socket.on('error', () => {});
    serve(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  return { server, port: typeof address === 'object' && address !== null ? address.port : 0 };
};

test('nobody there, nobody who speaks TLS, nobody to be trusted', async () => {
  const code = (wanted: string, says: RegExp) => (error: Fault) => error.code === wanted && says.test(error.message);
  const { server, port } = await listening(() => {}); // takes the connection and is silent
  const url = `https://localhost:${port}/`;
  const times = { ...TIMES, connect_ms: 100 };
  await assert.rejects(
    getBytes(url, { ...options, times }),
    code('host', /could not be reached in 100 ms.*5 attempts/),
  );
  server.close();
  server.unref();
  const loud = await listening(socket => socket.end('HTTP/1.0 400 no\r\n\r\n'));
  await assert.rejects(getBytes(`https://localhost:${loud.port}/`, options), code('host', /5 attempts/));
  loud.server.close();
  await assert.rejects(getBytes(`https://localhost:${loud.port}/`, options), (error: Fault) => {
    assert.match(error.hint ?? '', /HTTPS_PROXY/);
    return code('host', /5 attempts/)(error);
  });
  await assert.rejects(getBytes('https://nobody.invalid/', options), code('host', /nobody.invalid/));
  await using stranger = await new Mirror().open(); // its certificate is not trusted here
  await assert.rejects(getBytes(stranger.put('/x', 'x'), options), code('unverified', /Cannot trust localhost/));
  const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
  try {
    await assert.rejects(getBytes(stranger.put('/y', 'y'), options), code('unverified', /Cannot trust localhost/));
  } finally {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
  }
});

test('through the proxy of the environment', async () => {
  const asked: string[] = [];
  const { server, port } = await listening(socket => {
    socket.once('data', head => {
      const target = /^CONNECT (\S+):(\d+) /.exec(head.toString());
      asked.push(target?.[0] ?? head.toString());
      const out = connect(Number(target?.[2]), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        out.pipe(socket).pipe(out);
      });
      out.on('error', () => socket.destroy());
      socket.on('close', () => out.destroy());
    });
  });
  process.env.HTTPS_PROXY = `http://127.0.0.1:${port}`;
  try {
    await t.land(file().pipeline, { times: { ...TIMES, connect_ms: 2000 } });
    assert.equal(asked.length, 2);
  } finally {
    delete process.env.HTTPS_PROXY;
    server.close();
  }
});

/** The command lines of the processes that this one has started. Without `ps`: a bare system has none. */
const children = async (): Promise<string> => {
  let lines = '';
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || (await procStat(Number(name)))?.ppid !== process.pid) continue;
    lines += `${await readFile(`/proc/${name}/cmdline`, 'latin1').catch(() => '')}\n`;
  }
  return lines;
};

test('canceled at any moment: the reason comes back, nothing stays', async () => {
  const data = Buffer.alloc(3_000_000, DATA);
  const packed = await xz(data);
  const { path, pipeline } = file(packed);
  const sums = `${mirror.origin}${path}.sums`;
  mirror.put(`${path}.sums`, `${sha256(packed)}  x\n`);
  const whole: Pipeline = [
    ...pipeline,
    { stage: 'sha256', expect: { url: sums, name: 'x' } },
    { stage: 'xz' },
    { stage: 'sha256', expect: { hash: sha256(data) } },
  ];
  let ran = '';
  const soon = (stop: () => void) => {
    void sleep(100)
      .then(async () => {
        ran += await children();
      })
      .finally(stop);
    return {};
  };
  const at = (moment: (p: JobProgress) => boolean) => (stop: () => void) => ({
    onProgress: (p: JobProgress) => {
      if (moment(p)) stop();
    },
  });
  const moments: [string, Misdeed | undefined, (stop: () => void) => Parameters<Lander['land']>[1]][] = [
    ['at the list', undefined, at(p => p.stage === 'checksums')],
    ['at the first byte', undefined, at(p => p.stage === 'download')],
    ['in the middle', undefined, at(p => p.stage === 'download' && p.done > 100_000)],
    ['at the last byte', undefined, at(p => p.done === p.total)],
    ['while it waits', { cut: 1000 }, stop => ({ onLog: stop, times: { ...TIMES, retry_ms: 60_000 } })],
    ['in silence', { silent: true }, soon],
    ['in a stall', { stall: 1000 }, soon],
  ];
  for (const [what, deed, when] of moments) {
    mirror.misbehave(path, deed);
    const abort = new AbortController();
    const reason = new Fault('canceled', 'stop');
    const dir = await mkdtemp(join(t.root, 'cancel-'));
    const more = when(() => abort.abort(reason));
    await assert.rejects(t.land(whole, { ...more, dir, signal: abort.signal }), error => error === reason, what);
    assert.deepEqual(await readdir(dir), [], what);
    assert.doesNotMatch(await children(), /xz/, what);
  }
  assert.match(ran, /xz/, 'while it stood still');
});

test('canceled after any number of turns of the loop: all of it or nothing', async () => {
  const tar = archive({ name: 'a', data: DATA.subarray(0, 60_000) }, { name: 'b', data: 'b' });
  const packed = await xz(tar);
  const { pipeline } = file(packed);
  const whole: Pipeline = [
    ...pipeline,
    { stage: 'xz' },
    { stage: 'member', archive: 'tar', name: 'a', beside: { beside: 'b' } },
    { stage: 'sha256', expect: { hash: sha256(DATA.subarray(0, 60_000)) } },
  ];
  let landed = 0;
  let canceled = 0;
  for (let turns = 0; landed < 2; turns += 1 + (turns >> 3)) {
    const abort = new AbortController();
    const reason = new Fault('canceled', 'stop');
    const dir = await mkdtemp(join(t.root, 'turn-'));
    const run = t.land(whole, { dir, signal: abort.signal });
    for (let i = 0; i < turns; i++) await setImmediate();
    abort.abort(reason);
    const whole_landed = await run.then(
      () => true,
      error => assert.equal(error, reason),
    );
    if (whole_landed) landed++;
    else canceled++;
    assert.deepEqual((await readdir(dir)).sort(), whole_landed ? ['beside', 'file'] : [], String(turns));
  }
  assert.ok(canceled > 10, `${canceled} were canceled`);
  assert.doesNotMatch(await children(), /xz/);
});

test('a full disk is no_room', { skip: process.getuid?.() === 0 ? false : 'mounting needs root' }, async () => {
  const dir = join(t.root, 'small');
  await mkdir(dir);
  await run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', dir]);
  try {
    const data = Buffer.alloc(4_000_000, DATA);
    const { pipeline } = file(await xz(data));
    await t.refused('no_room', /is full/, [...pipeline, { stage: 'xz' }], { dir });
    const small = file(DATA);
    await t.land(small.pipeline, { dir });
  } finally {
    await run(['umount', dir]);
  }
});
