/** Commands that others started, or the same one asked for again; terminals by exec.run; more commands than there are streams. */
import assert from 'node:assert/strict';
import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, test } from 'node:test';
import { execResult } from '../src/client/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { boxed, rejects } from './kit/behave.ts';

const { w } = await boxed();
const dir = await mkdtemp(join(tmpdir(), 'nexus-attach-'));
await chmod(dir, 0o777); // the stand-in has a user of its own
after(() => rm(dir, { recursive: true, force: true }));

/** A command that a client has left; its ID. */
const leave = async (argv: string[], spec: { stdin?: 'open'; tty?: { cols: number; rows: number } } = {}) => {
  const abort = new AbortController();
  const stream = w.client.exec.run({ vm: 'box', argv, ...spec }, { signal: abort.signal });
  const first = (await stream.next()).value;
  assert.ok(first?.type === 'started');
  abort.abort(new Error('left'));
  await stream.next().catch(() => {});
  return first.exec;
};

const find = async (exec: string) => (await w.client.exec.list({ vm: 'box' })).find(one => one.exec === exec);
const feed = (exec: string, text: string) =>
  w.client.exec.stdin({ vm: 'box', exec }, { body: Readable.from([Buffer.from(text)]) });

test('a command is found again after its client and its daemon are gone', { timeout: 120_000 }, async () => {
  const exec = await leave(['sh', '-c', 'echo one; echo two >&2; read line; echo "$line"; exit 3'], { stdin: 'open' });
  assert.deepEqual(
    { ...(await find(exec)), pid: 0, started_at_ms: 0 },
    {
      exec,
      pid: 0,
      command: 'sh -c echo one; echo two >&2; read line; echo "$line"; exit 3',
      running: true,
      tty: false,
      session: null,
      started_at_ms: 0,
      exit_code: null,
      signal: null,
    },
  );
  await w.kill();
  await w.start();
  await feed(exec, 'three\n');
  const whole = await execResult(w.client.exec.attach({ vm: 'box', exec }));
  assert.deepEqual([whole.stdout.toString(), whole.stderr.toString(), whole.exit_code], ['one\nthree\n', 'two\n', 3]);
  const rest = await execResult(w.client.exec.attach({ vm: 'box', exec, stdout: 4, stderr: 2 }));
  assert.deepEqual([rest.stdout.toString(), rest.stderr.toString(), rest.exit_code], ['three\n', 'o\n', 3]);
  const shown = await w.ctl('execs', 'attach', 'box', exec);
  assert.deepEqual([shown.stdout, shown.stderr, shown.code], ['one\nthree\n', 'two\n', 3]);
  await rejects(w.client.exec.attach({ vm: 'box', exec, stdout: 11 }).next(), 'invalid');
  await rejects(w.client.exec.attach({ vm: 'box', exec: 'exec_none' }).next(), 'not_found');
  assert.deepEqual([(await find(exec))?.running, (await find(exec))?.exit_code], [false, 3]);
  assert.match((await w.ctl('execs', 'list', 'box')).stdout, new RegExp(`${exec} .* no .* sh -c echo one`));
});

test('the same request with the same key runs once; another one with it is refused', { timeout: 120_000 }, async () => {
  const file = join(dir, 'runs');
  const asked = {
    vm: 'box',
    argv: ['sh', '-c', `echo run >>${file}; cat ${file}; exit 5`],
    env: { B: '2', A: '1' },
    idempotency_key: 'deploy 7',
  };
  const twice = await Promise.all([1, 2].map(() => execResult(w.client.exec.run(asked))));
  await w.kill();
  await w.start();
  const later = await execResult(w.client.exec.run({ ...asked, env: { A: '1', B: '2' } }));
  for (const { stdout, exit_code } of [...twice, later]) assert.deepEqual([stdout.toString(), exit_code], ['run\n', 5]);
  const fault = await rejects(w.client.exec.run({ ...asked, env: {} }).next(), 'exists');
  assert.match(fault.message, /VM 'box': its idempotency key was used for another command/);
  assert.equal(await readFile(file, 'utf8'), 'run\n');
  const other = await execResult(w.client.exec.run({ ...asked, idempotency_key: 'deploy 8' }));
  assert.equal(other.stdout.toString(), 'run\nrun\n');
});

test('a terminal: one channel, its size, several who type', { timeout: 60_000 }, async () => {
  const script =
    'tty >/dev/null && stty size; while read l; do case "$l" in size) stty size;; end) exit 6;; *) echo "<$l>" >&2;; esac; done';
  const exec = await leave(['sh', '-c', script], { tty: { cols: 100, rows: 30 } });
  const seen: string[] = [];
  const watching = (async () => {
    for await (const m of w.client.exec.attach({ vm: 'box', exec })) {
      assert.notEqual(m.type, 'stderr');
      if (m.type === 'stdout') seen.push(Buffer.from(m.data, 'base64').toString());
      if (m.type === 'exit') return m;
    }
    return undefined;
  })();
  const until = (text: string) =>
    poll(`${text} on the terminal`, 30_000, () => seen.join('').includes(text) || undefined);
  await until('30 100\r\n');
  await Promise.all([feed(exec, 'one\n'), feed(exec, 'two\n')]);
  await until('<one>\r\n');
  await until('<two>\r\n');
  for (const [cols, rows] of [
    [65_535, 65_535],
    [1, 1],
    [132, 43],
  ] as const)
    await w.client.exec.resize({ vm: 'box', exec, cols, rows });
  await feed(exec, 'size\n');
  await until('43 132\r\n');
  for (const [cols, rows] of [
    [0, 0],
    [65_536, 1],
    [80, -1],
  ] as const)
    await rejects(w.client.exec.resize({ vm: 'box', exec, cols, rows }), 'invalid');
  await feed(exec, 'end\n');
  assert.equal((await watching)?.exit_code, 6);
  await rejects(w.client.exec.resize({ vm: 'box', exec, cols: 80, rows: 24 }), 'bad_state');
  await rejects(feed(exec, 'late'), 'not_found');
  const piped = await leave(['sleep', '600']);
  await rejects(w.client.exec.resize({ vm: 'box', exec: piped, cols: 80, rows: 24 }), 'bad_state');
  await w.client.exec.signal({ vm: 'box', exec: piped, signal: 'KILL' });
});

test('500 commands at once: each has its turn and its own output', { timeout: 240_000 }, async () => {
  const one = async (n: number): Promise<string> => {
    let text = '';
    for await (const m of w.client.exec.run({ vm: 'box', argv: ['sh', '-c', `sleep 0.2; echo ${n}`] })) {
      if (m.type === 'stdout') text += Buffer.from(m.data, 'base64').toString();
      if (m.type === 'exit') assert.equal(m.exit_code, 0);
    }
    return text;
  };
  const said = await Promise.all(Array.from({ length: 500 }, (_, n) => one(n)));
  assert.deepEqual(
    said,
    Array.from({ length: 500 }, (_, n) => `${n}\n`),
  );
});
