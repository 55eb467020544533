/** Files of a guest: the real agent on this host, its connections cut, and guests that lie. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import {
  chmod,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import http2, { type ServerHttp2Stream } from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import type { Files } from '../src/guest/files.ts';
import { poll } from '../src/lib/deadline.ts';
import { run } from '../src/lib/proc.ts';
import { type Harness, harness } from './kit/harness.ts';
import { rig, ring, speaker } from './kit/rig.ts';
import { paxBody, archive as tarOf } from './kit/tar.ts';

const MIB = 1024 * 1024;
const soon = () => AbortSignal.timeout(30_000);

let h: Harness;
let files: Files;
let dir: string;
before(async () => {
  h = await harness();
  files = h.guest.files;
  dir = await mkdtemp(join(tmpdir(), 'nexus-files-'));
});
after(async () => {
  await h[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

const at = (name: string) => join(dir, name);
const put = (name: string, text: string | Buffer, options = {}) =>
  files.write(at(name), options, Readable.from([Buffer.from(text)]), soon());

const take = async (path: string, range = {}): Promise<Buffer> => {
  using incoming = await files.read(path, { offset_bytes: 0, ...range }, soon());
  return Buffer.concat(await Array.fromAsync(incoming.bytes));
};

const refuses = (promise: Promise<unknown>, code: FaultCode, reason: string): Promise<void> =>
  assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof Fault, String(error));
    assert.deepEqual([error.code, error.reason], [code, reason], error.message);
    assert.match(error.message, /^Cannot [^\n]+\.$/);
    return true;
  });

test('a file is written whole, read in parts, appended to, changed, moved and removed', async () => {
  const name = 'späce & ünï?%#+.txt';
  const written = await put(name, 'hello', { mode: '0640' });
  assert.deepEqual([written.bytes, written.entry.mode, written.entry.name], [5, '0640', name]);
  await put(name, ' world', { append: true });
  await put(name, 'HE', { offset_bytes: 0 });
  assert.equal((await take(at(name))).toString(), 'HEllo world');
  assert.equal((await take(at(name), { offset_bytes: 6, length_bytes: 3 })).toString(), 'wor');
  assert.equal((await take(at(name), { offset_bytes: 600 })).length, 0);
  await put(name, '');
  assert.equal((await take(at(name))).length, 0);
  assert.equal((await stat(at(name))).mode & 0o7777, 0o640, 'a new content keeps the mode');
  await files.chmod(at(name), { mode: '4755' }, soon());
  assert.equal((await files.stat(at(name), false, soon())).mode, '4755');
  await files.mkdir(at('a/b'), { parents: true, mode: '0700' }, soon());
  await files.rename(at(name), at('a/b/c'), false, soon());
  await symlink('b/c', at('a/link'));
  const all = await Array.fromAsync(files.list(at('a'), soon()));
  assert.deepEqual(all.map(e => [e.name, e.type, e.target]).sort(), [
    ['b', 'directory', null],
    ['link', 'link', 'b/c'],
  ]);
  assert.equal((await files.stat(at('a/link'), true, soon())).type, 'file');
  await files.remove(at('a/link'), false, soon());
  await files.remove(at('a'), true, soon());
  assert.deepEqual(await readdir(dir), []);
});

test('what cannot be is refused by its reason, and changes nothing', async () => {
  await put('file', 'old');
  await mkdir(at('full/x'), { recursive: true });
  await symlink('loop', at('loop'));
  const cases: [() => Promise<unknown>, FaultCode, string][] = [
    [() => take(at('no')), 'not_found', 'ENOENT'],
    [() => take(dir), 'invalid', 'EISDIR'],
    [() => take('/dev/null'), 'invalid', 'NOT_REGULAR'],
    [() => take(at('loop')), 'invalid', 'ELOOP'],
    [() => take(at('file/x')), 'invalid', 'ENOTDIR'],
    [() => take(at('n'.repeat(300))), 'invalid', 'ENAMETOOLONG'],
    [() => take(at('file'), { etag: '1-2-3-4' }), 'bad_state', 'CHANGED'],
    [() => put('full', 'x'), 'invalid', 'EISDIR'],
    [() => put('no/file', 'x'), 'not_found', 'ENOENT'],
    [() => files.write(`${dir}/full/..`, {}, Readable.from(['x']), soon()), 'invalid', 'EISDIR'],
    [() => files.write('/dev/null', {}, Readable.from(['x']), soon()), 'invalid', 'NOT_REGULAR'],
    [() => Array.fromAsync(files.list(at('file'), soon())), 'invalid', 'ENOTDIR'],
    [() => files.stat(at('no'), false, soon()), 'not_found', 'ENOENT'],
    [() => files.remove(at('full'), false, soon()), 'invalid', 'EISDIR'],
    [() => files.remove(`${dir}/full/..`, true, soon()), 'invalid', 'EINVAL'],
    [() => files.remove(at('no'), true, soon()), 'not_found', 'ENOENT'],
    [() => files.mkdir(at('full'), {}, soon()), 'exists', 'EEXIST'],
    [() => files.rename(at('file'), at('full'), true, soon()), 'invalid', 'EISDIR'],
    [() => files.rename(at('file'), at('full/x'), false, soon()), 'exists', 'EEXIST'],
    [() => files.rename(at('full'), at('full/x/y'), false, soon()), 'invalid', 'EINVAL'],
    [() => files.rename(at('file'), '/proc/x', false, soon()), 'invalid', 'EXDEV'],
    [() => files.chmod(at('no'), { mode: '644' }, soon()), 'not_found', 'ENOENT'],
  ];
  for (const [attempt, code, reason] of cases) await refuses(attempt(), code, reason);
  assert.deepEqual((await readdir(dir)).sort(), ['file', 'full', 'loop']);
  assert.equal(await readFile(at('file'), 'utf8'), 'old');
  await files.remove(at('full'), true, soon());
  await rm(at('loop'));
  await rm(at('file'));
});

test('an upload that breaks off leaves the old file and nothing beside it', async () => {
  await put('file', 'old');
  const source = new Readable({ read() {} });
  const writing = files.write(at('file'), {}, source, soon());
  writing.catch(() => {});
  source.push(randomBytes(MIB));
  await poll('the file beside it', 5000, async () => (await readdir(dir)).length > 1 || undefined);
  source.destroy(new Error('gone'));
  await assert.rejects(writing, { code: 'canceled', message: /^What was sent broke off: gone\.$/ });
  await poll('its end', 5000, async () => (await readdir(dir)).length === 1 || undefined);
  const left = new AbortController();
  const aborted = files.write(at('file'), {}, new Readable({ read() {} }), left.signal);
  setTimeout(() => left.abort(new Fault('canceled', 'Left.')), 50);
  await assert.rejects(aborted, { message: 'Left.' });
  await poll('its end', 5000, async () => (await readdir(dir)).length === 1 || undefined);
  assert.equal(await readFile(at('file'), 'utf8'), 'old');
  await rm(at('file'));
});

const sha = async (chunks: AsyncIterable<Buffer>) => {
  const hash = createHash('sha256');
  for await (const chunk of chunks) hash.update(chunk);
  return hash.digest('hex');
};

test('reading goes on at its byte when the connection is lost, as long as the file is the same', {
  timeout: 60_000,
}, async () => {
  const data = randomBytes(24 * MIB);
  await writeFile(at('big'), data);
  {
    using incoming = await files.read(at('big'), { offset_bytes: 5 }, soon());
    assert.equal(incoming.length, data.length - 5);
    let [got, cuts] = [0, 0];
    const cutting = async function* () {
      for await (const chunk of incoming.bytes) {
        got += chunk.length;
        if (got > (cuts + 1) * 4 * MIB) {
          cuts++;
          h.proxy.cut();
        }
        yield chunk;
      }
    };
    assert.equal(await sha(cutting()), createHash('sha256').update(data.subarray(5)).digest('hex'));
    assert.ok(cuts >= 4, `${cuts} cuts`);
  }
  using incoming = await files.read(at('big'), { offset_bytes: 0 }, soon());
  const chunks = incoming.bytes[Symbol.asyncIterator]();
  await chunks.next();
  await writeFile(at('big'), randomBytes(24 * MIB));
  h.proxy.cut();
  const rest = async () => {
    while ((await chunks.next()).done !== true);
  };
  await refuses(rest(), 'bad_state', 'CHANGED');
});

test('a file that shrinks while it is read, one without a length, and readers that stop', {
  timeout: 60_000,
}, async () => {
  await writeFile(at('big'), randomBytes(24 * MIB));
  using incoming = await files.read(at('big'), { offset_bytes: 0 }, soon());
  const chunks = incoming.bytes[Symbol.asyncIterator]();
  await chunks.next();
  await truncate(at('big'), 100);
  const rest = async () => {
    while ((await chunks.next()).done !== true);
  };
  await refuses(rest(), 'bad_state', 'SHRUNK');
  assert.match((await take('/proc/self/status')).toString(), /^Name:\s+agent-harness\n/);
  assert.equal((await take('/proc/self/status', { length_bytes: 100_000 })).toString().includes('Threads:'), true);
  assert.equal((await take('/proc/self/status', { length_bytes: 5 })).toString(), 'Name:');
  await put('empty', '');
  assert.equal((await take(at('empty'), { length_bytes: 10 })).length, 0);
  await writeFile(at('big'), Buffer.alloc(8 * MIB));
  for (let i = 0; i < 250; i++) {
    // of either kind more than there are places: each is given back
    using one = await files.read(at('big'), { offset_bytes: 0 }, soon());
    if (i % 2 === 0) await one.bytes[Symbol.asyncIterator]().next();
  }
  assert.equal((await take(at('big'))).length, 8 * MIB);
  await rm(at('big'));
});

test('a large directory and a sparse file', { timeout: 60_000 }, async () => {
  await mkdir(at('many'));
  for (let i = 0; i < 3000; i++) await writeFile(at(`many/${i}`), '');
  let count = 0;
  for await (const _ of files.list(at('many'), soon())) count++;
  assert.equal(count, 3000);
  for await (const _ of files.list(at('many'), soon())) break; // a reader that leaves
  await files.remove(at('many'), true, soon());
  const written = await files.write(at('sparse'), {}, Readable.from(zeros(64)), soon());
  assert.equal(written.bytes, 64 * MIB);
  assert.ok((await stat(at('sparse'))).blocks * 512 < MIB, 'zeros are no blocks');
  await rm(at('sparse'));
});

function* zeros(mib: number) {
  const chunk = Buffer.alloc(MIB);
  for (let i = 0; i < mib; i++) yield chunk;
}

test('what the kernel does not permit a user is told as such', {
  skip: process.getuid?.() !== 0 ? 'needs root' : false,
}, async () => {
  await refuses(files.mkdir('/proc/1/x', {}, soon()), 'not_found', 'ENOENT');
  const handle = await open(at('busy'), 'w');
  await handle.close();
  await chmod(at('busy'), 0o400);
  await put('busy', 'root may');
  await rm(at('busy'));
});

test('a watch tells what happens, ends with its path, and gives its place back', { timeout: 60_000 }, async () => {
  await mkdir(at('seen'));
  const seen: string[] = [];
  const watching = Promise.withResolvers<void>();
  const over = (async () => {
    for await (const m of files.watch(at('seen'), true, AbortSignal.timeout(50_000))) {
      if (m.type === 'watching') watching.resolve();
      else if (m.type === 'moved') seen.push(`moved ${m.path.slice(dir.length)} ${m.new_path.slice(dir.length)}`);
      else if (m.type !== 'overflow' && m.type !== 'changed') seen.push(`${m.type} ${m.path.slice(dir.length)}`);
    }
  })();
  await watching.promise;
  await mkdir(at('seen/sub'));
  await put('seen/sub/file', 'x');
  await files.rename(at('seen/sub/file'), at('seen/new'), false, soon());
  await files.remove(at('seen'), true, soon());
  await over;
  const moved = seen.filter(s => !/\.nexus-/.test(s));
  assert.deepEqual(moved.slice(0, 2), ['created /seen/sub', 'moved /seen/sub/file /seen/new']);
  assert.deepEqual(moved.slice(2).sort(), ['removed /seen', 'removed /seen/new', 'removed /seen/sub']);
  await mkdir(at('many'));
  for (let i = 0; i < 120; i++) {
    for await (const m of files.watch(at('many'), false, soon())) if (m.type === 'watching') break;
  }
  await refuses(Array.fromAsync(files.watch(at('no'), true, soon())), 'not_found', 'ENOENT');
  await rm(at('many'), { recursive: true });
});

test('a tree goes out and in as an archive; what is cut or rubbish is refused', { timeout: 60_000 }, async () => {
  await mkdir(at('tree/deep'), { recursive: true });
  await writeFile(at('tree/deep/file'), randomBytes(3 * MIB));
  await symlink('deep/file', at('tree/link'));
  const tree = async () => {
    using incoming = await files.exportTree(at('tree'), false, soon());
    return Buffer.concat(await Array.fromAsync(incoming.bytes));
  };
  const archive = await tree();
  const into = (path: string, body: Readable) => files.importTree(path, body, soon());
  assert.deepEqual(await into(at('copy'), Readable.from([archive])), { entries: 4, bytes: 3 * MIB });
  assert.ok((await readFile(at('copy/link'))).equals(await readFile(at('tree/deep/file'))));
  await refuses(into(at('bad'), Readable.from([Buffer.alloc(2048, 'x')])), 'invalid', 'ARCHIVE');
  await refuses(into(at('no/copy'), Readable.from([archive])), 'not_found', 'ENOENT');
  await refuses(into(at('tree/deep/file'), Readable.from([archive])), 'invalid', 'ENOTDIR');
  const half = Readable.from(
    (async function* () {
      yield archive.subarray(0, MIB);
      throw new Error('gone');
    })(),
  );
  await assert.rejects(into(at('half'), half), { code: 'canceled', message: /^What was sent broke off: gone\.$/ });
  await poll(
    'its end',
    5000,
    async () => !(await readdir(at('half/deep'))).some(n => n.startsWith('.nexus')) || undefined,
  );
  {
    using incoming = await files.exportTree(at('tree'), false, soon());
    const chunks = incoming.bytes[Symbol.asyncIterator]();
    await chunks.next();
    h.proxy.cut();
    await assert.rejects(
      (async () => {
        while ((await chunks.next()).done !== true);
      })(),
      { code: 'guest' },
    );
  }
  for (let i = 0; i < 130; i++) {
    // readers that leave while a piece waits for them
    using one = await files.exportTree(at('tree'), false, soon());
    await one.bytes[Symbol.asyncIterator]().next();
  }
  // as of git archive: that comment is of no file
  const others = tarOf(
    { name: 'pax_global_header', type: 'g', data: paxBody([['comment', 'a1b2']]) },
    { name: 'f', data: 'x' },
  );
  assert.deepEqual(await into(at('other'), Readable.from([others])), { entries: 1, bytes: 1 });
  const sparse = await open(at('other/f'), 'w');
  await sparse.write('end', 5 * MIB);
  await sparse.close();
  await run(['tar', '-C', at('other'), '--sparse', '--format=gnu', '-cf', at('gnu.tar'), 'f']);
  assert.equal((await into(at('other'), Readable.from([await readFile(at('gnu.tar'))]))).entries, 1);
  assert.deepEqual((await readFile(at('other/f'))).subarray(5 * MIB).toString(), 'end');
  using gone = await files.exportTree('/dev/null', false, soon());
  await refuses(Array.fromAsync(gone.bytes), 'invalid', 'NOT_REGULAR');
  for (const name of ['tree', 'copy', 'half', 'bad', 'other']) await rm(at(name), { recursive: true, force: true });
});

const ENTRY = {
  ...{ name: 'n', type: 'file', size_bytes: 10, mode: '0644', uid: 0, gid: 0, modified_at_ms: 1, target: null },
  etag: 'e',
};
const head = (entry: object) => encodeURIComponent(JSON.stringify(entry));

/** An answer of this head and body, ended by this trailer. */
const sends =
  (headers: Record<string, string>, body: string | Buffer, end?: string) =>
  (stream: ServerHttp2Stream): void => {
    stream.respond({ ':status': 200, ...headers }, { waitForTrailers: end !== undefined });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'nexus-end': end }));
    stream.end(body);
  };
const good = { 'nexus-entry': head(ENTRY), 'nexus-length': '10' };

const LIES: Record<string, [(stream: ServerHttp2Stream) => void, RegExp]> = {
  'no head': [sends({}, 'x'.repeat(10), 'ok'), /did not say what it sends/],
  'a head of rubbish': [sends({ ...good, 'nexus-entry': '%7b%7b' }, '', 'ok'), /no valid JSON/],
  'a head that is no text': [sends({ ...good, 'nexus-entry': '%ff' }, '', 'ok'), /no valid text/],
  'a head of other fields': [sends({ ...good, 'nexus-entry': head({ name: 'n' }) }, '', 'ok'), /is not as agreed/],
  'a length of text': [sends({ ...good, 'nexus-length': 'ten' }, '', 'ok'), /did not say what it sends/],
  'too little': [sends(good, 'x', 'ok'), /sent too little/],
  'too much': [sends(good, 'x'.repeat(11), 'ok'), /sends too much/],
  'no end': [sends(good, 'x'.repeat(10)), /broke it off/],
  'an end of rubbish': [sends(good, 'x'.repeat(10), 'no\\u001b[2J'), /gave no reason/],
  'an errno that nobody knows': [sends(good, 'x', 'EODD'), /the guest says EODD/],
  'broken off again and again': [
    stream => {
      stream.respond({ ':status': 200, ...good });
      setTimeout(() => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR), 2);
    },
    /was lost|was reset|broke it off/,
  ],
};

for (const [name, [answer, message]] of Object.entries(LIES)) {
  test(`reading from a guest that sends ${name} is a fault of the guest`, async () => {
    await using r = await rig(speaker(answer));
    await ring(r);
    const read = async () => {
      using incoming = await r.guest.files.read('/x', { offset_bytes: 0 }, soon());
      for await (const _ of incoming.bytes);
    };
    await assert.rejects(read(), (e: unknown) => e instanceof Fault && e.code === 'guest' && message.test(e.message));
    await r.guest.ping(soon());
  });
}

test('a guest that sends nothing, takes nothing or does not answer is given up', { timeout: 60_000 }, async () => {
  const late = (promise: Promise<unknown>) =>
    assert.rejects(promise, { code: 'timeout', message: /the guest was silent for \d+ ms/ });
  const answers = (stream: ServerHttp2Stream, headers: http2.IncomingHttpHeaders) => {
    if (headers[':method'] === 'GET') stream.respond({ ':status': 200, ...good });
    if (headers[':path']?.includes('deaf') === true) stream.pause();
  };
  await using r = await rig(speaker(answers), { file_silence_ms: 300 });
  await ring(r);
  const read = async () => {
    using incoming = await r.guest.files.read('/x', { offset_bytes: 0 }, soon());
    for await (const _ of incoming.bytes);
  };
  await late(read());
  await late(Array.fromAsync(r.guest.files.list('/x', soon())));
  await late(r.guest.files.write('/deaf', {}, Readable.from(zeros(64)), soon()));
  await late(r.guest.files.write('/x', {}, Readable.from(['x']), soon()));
  const typing = new Readable({ read() {} });
  const slow = r.guest.files.write('/slow', {}, typing, AbortSignal.timeout(1500));
  await assert.rejects(slow, { name: 'TimeoutError' }, 'one who types slowly is waited for');
  await r.guest.ping(soon());
});

test('fuzz: whatever a guest sends as a list is entries or one fault', { timeout: 60_000 }, async () => {
  const pieces = [
    JSON.stringify(ENTRY),
    '\n',
    '{',
    '}',
    '\u0000',
    '\xff',
    ',',
    '"name"',
    '[]',
    'null',
    ' ',
    '{"type":"overflow"}',
  ];
  let seed = 7;
  const next = (most: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return seed % most;
  };
  const bodies = Array.from({ length: 200 }, () =>
    Buffer.concat(Array.from({ length: next(30) }, () => Buffer.from(pieces[next(pieces.length)] ?? '', 'latin1'))),
  );
  let at = 0;
  await using r = await rig(speaker(stream => sends({}, bodies[at++ % bodies.length] ?? '', 'ok')(stream)));
  await ring(r);
  for (const _ of bodies) {
    const list = Array.fromAsync(r.guest.files.list('/x', soon()));
    const found = await list.catch((e: unknown) => e);
    assert.ok(Array.isArray(found) || (found instanceof Fault && found.code === 'guest'), String(found));
  }
});

test('lists of rubbish, endless lines, and an agent that is older', async () => {
  const list = async (answer: (stream: ServerHttp2Stream) => void) => {
    await using r = await rig(speaker(answer));
    await ring(r);
    return await Array.fromAsync(r.guest.files.list('/x', soon()));
  };
  const line = JSON.stringify(ENTRY);
  assert.equal((await list(sends({}, `${line}\n${line}\n`, 'ok'))).length, 2);
  for (const body of [
    '{}\n',
    'x\n',
    line,
    Buffer.alloc(3 * MIB, 'x'),
    JSON.stringify({ ...ENTRY, name: 'n'.repeat(5000) }),
  ])
    await assert.rejects(list(sends({}, body, 'ok')), { code: 'guest' });
  await assert.rejects(list(sends({}, `${line}\n`)), { code: 'guest' });
  await refuses(list(sends({}, `${line}\n`, 'EIO')), 'guest', 'EIO');
  const old = (stream: ServerHttp2Stream) => {
    stream.respond({ ':status': 404, 'content-type': 'application/json' });
    stream.end('{"code":"not_found","detail":"the agent does not know this request"}');
  };
  await assert.rejects(list(old), {
    code: 'unsupported',
    message: /the guest's agent is older than this daemon\.$/,
  });
  const terminal = sends({}, `${JSON.stringify({ ...ENTRY, size_bytes: -1, name: '\u001b[2J' })}\n`, 'ok');
  await assert.rejects(list(terminal), (e: unknown) => e instanceof Fault && !e.message.includes('\u001b'));
});
