/** The agent's program is replaced while commands, terminals and ports run; on this host, with the real agent's code. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { appendFile, copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { ExecSpec } from '../src/api/exec.ts';
import type { ExecStream } from '../src/guest/exec.ts';
import type { AgentProgram } from '../src/guest/update.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { agentBinaries } from './kit/agent.ts';
import { harness } from './kit/harness.ts';
import { rig, ring, speaker } from './kit/rig.ts';
import { checkSeq, drain, ENDLESS, start } from './kit/stress.ts';
import { fault } from './standin/vmm.ts';

const soon = () => AbortSignal.timeout(60_000);

const programOf = async (path: string): Promise<AgentProgram> => ({
  path,
  sha256: createHash('sha256')
    .update(await readFile(path))
    .digest('hex'),
});

interface Programs extends AsyncDisposable {
  dir: string;
  /** The harness with something behind its end: the same program with another hash. */
  next(): Promise<AgentProgram>;
}

const programs = async (): Promise<Programs> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-update-'));
  let count = 0;
  const next = async () => {
    const path = join(dir, `next-${count}`);
    await copyFile((await agentBinaries()).harness, path);
    await appendFile(path, `number ${count++}`);
    return programOf(path);
  };
  return { dir, next, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

const textOf = async (stream: ExecStream): Promise<string> => {
  let text = '';
  for await (const piece of stream) {
    assert.ok('data' in piece, 'nothing is missing');
    text += piece.data.toString();
  }
  return text;
};

const spec = (id: string, argv: string[], more: object = {}) => ({ ...ExecSpec.parse({ argv, ...more }), id });

test('what runs goes on, what ended is known, and no byte is lost, however often', { timeout: 120_000 }, async t => {
  await using h = await harness();
  await using p = await programs();
  const { guest } = h;
  const torrent = await start(guest, ENDLESS, {}, undefined, soon());
  let seen = 0;
  const torrentRead = checkSeq(torrent, bytes => {
    seen += bytes;
  });
  const lag = await start(guest, ENDLESS, {}, undefined, soon());
  const lagRead = checkSeq(lag, () => sleep(1));
  const runs = join(p.dir, 'runs');
  const keyed = { ...spec('keyed', ['sh', '-c', `echo once >> ${runs}; echo out; exit 3`]), digest: 'abc' };
  assert.equal(await textOf(await guest.exec(keyed, { signal: soon() })), 'out\n');
  const slow = await start(guest, [
    'sh',
    '-c',
    'i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 7',
  ]);
  const slowRead = textOf(slow);
  const fed = await start(guest, ['cat'], { stdin: 'open' });
  const fedRead = textOf(fed);
  const kept = await start(guest, ['sleep', '600'], { on_disconnect: 'kill' });
  const keptRead = drain(kept);
  const late = await start(guest, ['sleep', '600'], { timeout_ms: 6000 });
  const lateRead = drain(late);
  const wrote = join(p.dir, 'wrote');
  const held = await start(guest, ['sh', '-c', `(sleep 3; echo more && echo ok > ${wrote}) & echo first`]);
  assert.equal(await textOf(held), 'first\n');
  for (let n = 0; n < 5; n++) {
    const from = performance.now();
    const before = seen;
    const program = await p.next();
    const { before: was, after } = await guest.update(program, soon());
    assert.notEqual(was.sha256, after.sha256);
    assert.equal(after.sha256, program.sha256);
    await poll('output', 20_000, () => seen > before + 1_000_000 || undefined);
    t.diagnostic(`${Math.round(performance.now() - from)} ms`);
    assert.deepEqual(await guest.update(program, soon()), { before: after, after }, 'once more does nothing');
  }
  const again = await guest.attachExec('keyed', { stdout: 0, stderr: 0 }, soon());
  assert.equal(await textOf(again), 'out\n');
  assert.equal((await again.result).exit_code, 3);
  assert.equal(await textOf(await guest.exec(keyed, { signal: soon() })), 'out\n');
  assert.equal(await readFile(runs, 'utf8'), 'once\n');
  await guest.writeStdin(fed.id, Readable.from([Buffer.from('fed')]), soon());
  assert.equal(await fedRead, 'fed');
  assert.equal(await slowRead, Array.from({ length: 40 }, (_, n) => `${n}\n`).join(''));
  assert.equal((await slow.result).exit_code, 7);
  for (const stream of [torrent, lag]) await guest.signalExec(stream.id, 'TERM', soon());
  for (const read of [torrentRead, lagRead]) {
    const { gaps, lost } = await read;
    assert.deepEqual([gaps, lost], [0, 0]);
  }
  assert.equal((await torrent.result).signal, 'TERM');
  await lateRead;
  assert.deepEqual([(await late.result).signal, (await late.result).timed_out], ['KILL', true]);
  assert.ok((await guest.execs(soon())).some(({ id, running }) => id === kept.id && running));
  await guest.signalExec(kept.id, 'INT', soon());
  await keptRead;
  assert.equal((await kept.result).signal, 'INT');
  const word = await poll('the grandchild', 10_000, () => readFile(wrote, 'utf8').catch(() => undefined));
  assert.equal(word, 'ok\n', 'who holds a pipe may go on to write');
});

test('a terminal keeps its session, its size and what it showed', { timeout: 120_000 }, async () => {
  await using h = await harness();
  await using p = await programs();
  const asked = {
    ...ExecSpec.parse({ argv: ['sh', '-c', 'stty -echo; echo begin; while read x; do echo "<$x>"; stty size; done'] }),
    tty: { cols: 91, rows: 17 },
    session: 'main',
    tail: 100_000,
  };
  const first = await h.guest.viewTerminal({ ...asked, id: 'term_1' }, soon());
  let shown = '';
  const reading = (async () => {
    for await (const piece of first.output) {
      assert.ok('data' in piece);
      shown += piece.data.toString();
    }
  })();
  const shows = (text: string) => poll(text, 20_000, () => shown.includes(text) || undefined);
  await shows('begin');
  await first.keys.write(Buffer.from('one\n'));
  await shows('<one>\r\n17 91');
  await h.guest.update(await p.next(), soon());
  await first.keys.write(Buffer.from('two\n'));
  await shows('<two>\r\n17 91');
  await h.guest.resizeExec('term_1', 70, 20, soon());
  await first.keys.write(Buffer.from('three\n'));
  await shows('<three>\r\n20 70');
  const second = await h.guest.viewTerminal({ ...asked, id: 'term_2' }, soon());
  assert.equal(second.output.id, 'term_1', 'the same session');
  let scrolled = '';
  for await (const piece of second.output) {
    if ('data' in piece) scrolled += piece.data.toString();
    if (scrolled.includes('<three>')) break;
  }
  assert.match(scrolled, /^begin\r\n<one>\r\n17 91\r\n<two>/);
  second.output.detach();
  await first.keys.write(Buffer.from('\u0004'));
  await reading;
  assert.equal((await first.output.result).exit_code, 0);
});

test('a program that does not fit is refused, and the old one goes on', { timeout: 120_000 }, async () => {
  await using h = await harness();
  await using p = await programs();
  const running = await start(h.guest, ['sh', '-c', 'sleep 1; echo still']);
  const { agent_x86_64, agent_aarch64 } = await agentBinaries();
  const make = async (name: string, bytes: Buffer | string): Promise<AgentProgram> => {
    const path = join(p.dir, name);
    await writeFile(path, bytes);
    return programOf(path);
  };
  const good = await p.next();
  const bytes = await readFile(good.path);
  const foreign = Buffer.from(bytes);
  foreign.writeUInt16LE(8, 18);
  const cases: [AgentProgram, RegExp][] = [
    [await make('text', '#!/bin/sh\necho hello\n'), /it is no ELF program/],
    [await make('foreign', foreign), /another processor \(machine 8/],
    [await make('half', bytes.subarray(0, 4096)), /no agent of this kind|does not say what it takes over/],
    [await programOf(agent_x86_64), /no agent of this kind/],
    [await programOf(agent_aarch64), /another processor/],
    [{ ...good, sha256: '0'.repeat(64) }, /has the SHA-256 [0-9a-f]{64} instead of/],
    [await make('long', Buffer.alloc(33 * 1024 * 1024)), /has 34603008 bytes/],
  ];
  for (const [program, text] of cases) {
    await assert.rejects(h.guest.update(program, soon()), error => {
      assert.ok(error instanceof Error);
      assert.match(error.message, text);
      return true;
    });
  }
  assert.equal(h.proxy.opened, 1, 'on one connection');
  assert.equal(await textOf(running), 'still\n');
  const slowly = Readable.from(
    (async function* () {
      yield Buffer.from('a');
      await sleep(4000);
      yield Buffer.from('b');
    })(),
  );
  const fed = await start(h.guest, ['cat'], { stdin: 'open' }, slowly);
  await sleep(300);
  await assert.rejects(
    h.guest.update(good, soon()),
    fault('bad_state', /must not break off, as one that writes a file or the standard input/),
  );
  assert.equal(await textOf(fed), 'ab');
  assert.notEqual(
    (await h.guest.update(good, soon())).after.sha256,
    (await programOf((await agentBinaries()).harness)).sha256,
  );
});

test('what an agent does after the loss of its connection is waited for', async () => {
  const [was, next] = ['1'.repeat(64), '2'.repeat(64)];
  await using p = await programs();
  const path = join(p.dir, 'program');
  await writeFile(path, 'program');
  let lost_ms: number | undefined;
  const serve = speaker((stream, headers) => {
    if (headers[':path'] === '/v1/update') {
      lost_ms ??= performance.now();
      stream.session?.destroy();
      return;
    }
    const sha256 = lost_ms !== undefined && performance.now() - lost_ms > 2000 ? next : was;
    stream.respond({ ':status': 200 });
    stream.end(JSON.stringify({ version: '1', sha256 }));
  });
  await using r = await rig(serve);
  await ring(r);
  const { before, after } = await r.guest.update({ path, sha256: next }, soon());
  assert.deepEqual([before.sha256, after.sha256], [was, next]);
});
