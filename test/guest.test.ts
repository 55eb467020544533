/** Commands in a guest: the real agent, run on this host. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import { ExecSpec } from '../src/api/exec.ts';
import { Fault } from '../src/api/fault.ts';
import type { ExecStream } from '../src/guest/exec.ts';
import { type Harness, harness } from './kit/harness.ts';

let h: Harness;
let count = 0;
before(async () => {
  h = await harness();
});
after(() => h[Symbol.asyncDispose]());

const soon = () => AbortSignal.timeout(20_000);

const start = (argv: string[], spec: Partial<ExecSpec> = {}, stdin?: Readable) =>
  h.guest.exec(
    { ...ExecSpec.parse({ argv, ...spec }), id: `exec_${process.pid}_${count++}` },
    { stdin, signal: soon() },
  );

const collect = async (stream: ExecStream) => {
  const out: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
  for await (const piece of stream) {
    assert.ok('data' in piece, 'no gap');
    out[piece.channel].push(piece.data);
  }
  return { stdout: Buffer.concat(out.stdout), stderr: Buffer.concat(out.stderr), exit: await stream.result };
};
const run = async (argv: string[], spec: Partial<ExecSpec> = {}, stdin?: Readable) =>
  collect(await start(argv, spec, stdin));

const sh = (script: string, spec: Partial<ExecSpec> = {}, stdin?: Readable) => run(['sh', '-c', script], spec, stdin);

test('the bell brings the facts and the state', async () => {
  assert.equal(h.guest.state, 'ready');
  assert.deepEqual(h.states, ['ready']);
  const facts = await h.guest.refresh(soon());
  assert.equal(facts.generation, 1);
  assert.equal(facts.agent_id, h.guest.facts?.agent_id);
  assert.ok((await h.guest.ping(soon())) > 0);
});

test('stdout and stderr come apart, with the exit code', async () => {
  const { stdout, stderr, exit } = await sh('echo out; echo err >&2; exit 7');
  assert.equal(stdout.toString(), 'out\n');
  assert.equal(stderr.toString(), 'err\n');
  assert.deepEqual(
    { ...exit, duration_ms: 0 },
    { type: 'exit', exit_code: 7, signal: null, timed_out: false, duration_ms: 0 },
  );
  assert.ok(exit.duration_ms > 0);
});

test('a signal and a timeout are told apart from an exit', async () => {
  const killed = await sh('kill -SEGV $$');
  assert.equal(killed.exit.signal, 'SEGV');
  assert.equal(killed.exit.exit_code, null);
  assert.equal(killed.exit.timed_out, false);
  const late = await run(['sleep', '60'], { timeout_ms: 100 });
  assert.equal(late.exit.signal, 'KILL');
  assert.equal(late.exit.timed_out, true);
});

test('env and cwd reach the command', async () => {
  const { stdout } = await sh('printf "%s %s" "$NEXUS_X" "$PWD"', { env: { NEXUS_X: 'ä b' }, cwd: '/usr' });
  assert.equal(stdout.toString(), 'ä b /usr');
});

const refused = (code: string, reason: string) => (error: unknown) => {
  assert.ok(error instanceof Fault);
  assert.equal(error.code, code);
  assert.equal(error.reason, reason);
  assert.match(error.message, /^Cannot .*\.$/);
  return true;
};

test('a command that cannot be started says why', async () => {
  await assert.rejects(run(['/no/such/program']), refused('not_found', 'no_program'));
  await assert.rejects(run(['no-such-program-in-path']), refused('not_found', 'no_program'));
  await assert.rejects(run(['/etc/passwd']), refused('invalid', 'no_permission'));
  await assert.rejects(run(['true'], { cwd: '/no/such/dir' }), refused('invalid', 'no_cwd'));
  await assert.rejects(run(['true'], { user: 'no-such-user' }), refused('invalid', 'no_user'));
  const big = Array.from({ length: 30 }, () => 'x'.repeat(131_000));
  await assert.rejects(run(['true', ...big]), refused('invalid', 'too_big'));
  await assert.rejects(run(['true', ...big, ...big]), /more than 4 MiB/);
});

test('bytes pass unchanged both ways', async () => {
  const bytes = randomBytes(3_000_000);
  const { stdout, exit } = await run(
    ['cat'],
    { stdin: 'open' },
    Readable.from([bytes.subarray(0, 1), bytes.subarray(1)]),
  );
  assert.equal(exit.exit_code, 0);
  assert.ok(stdout.equals(bytes));
});

test('standard input can come later, once', async () => {
  const stream = await start(['sha256sum'], { stdin: 'open' });
  const bytes = randomBytes(1_000_000);
  assert.equal(await h.guest.writeStdin(stream.id, Readable.from([bytes]), soon()), bytes.length);
  await assert.rejects(h.guest.writeStdin(stream.id, Readable.from(['more']), soon()), { code: 'bad_state' });
  const { stdout } = await collect(stream);
  assert.equal(stdout.toString().split(' ')[0], createHash('sha256').update(bytes).digest('hex'));
});

test('an upload that breaks off fails, and never looks complete; the command has its own end', async () => {
  const broken = (how: (source: Readable) => void) => {
    const source = new Readable({ read() {} });
    source.push(Buffer.alloc(1000));
    setTimeout(() => how(source), 100);
    return source;
  };
  for (const how of [
    (source: Readable) => source.destroy(),
    (source: Readable) => source.destroy(new Error('the disk is gone')),
  ]) {
    const stream = await start(['sh', '-c', 'wc -c; exit 4'], { stdin: 'open' });
    await assert.rejects(h.guest.writeStdin(stream.id, broken(how), soon()), {
      code: 'canceled',
      message: /^The standard input broke off: .+\.$/,
    });
    const { stdout, exit } = await collect(stream);
    assert.deepEqual([stdout.toString(), exit.exit_code], ['1000\n', 4]);
    await assert.rejects(run(['wc', '-c'], { stdin: 'open' }, broken(how)), { code: 'canceled' });
  }
});

test('a command that closes its input early ends the upload, not the command', async () => {
  const endless = new Readable({
    read() {
      this.push(Buffer.alloc(65_536));
    },
  });
  const { exit } = await sh('exec 0<&-; echo ok; sleep 0.1', { stdin: 'open' }, endless);
  assert.equal(exit.exit_code, 0);
  assert.equal(endless.destroyed, true);
});

test('a signal by id ends a command; afterwards there is nothing to signal', async () => {
  const stream = await start(['sleep', '60']);
  assert.ok((await h.guest.execs(soon())).some(e => e.id === stream.id && e.running && e.pid === stream.pid));
  await h.guest.signalExec(stream.id, 'TERM', soon());
  assert.equal((await collect(stream)).exit.signal, 'TERM');
  await assert.rejects(h.guest.signalExec(stream.id, 'TERM', soon()), { code: 'not_found' });
});

test('a detached command goes on and can be read again', async () => {
  const stream = await start(['sh', '-c', 'echo one; sleep 0.2; echo two']);
  stream.detach();
  await assert.rejects(stream.result, { code: 'canceled' });
  const again = await h.guest.attachExec(stream.id, { stdout: 0, stderr: 0 }, soon());
  assert.equal(again.pid, stream.pid);
  assert.equal((await collect(again)).stdout.toString(), 'one\ntwo\n');
  const rest = await h.guest.attachExec(stream.id, { stdout: 4, stderr: 0 }, soon());
  assert.equal((await collect(rest)).stdout.toString(), 'two\n');
  const never = h.guest.attachExec('exec_never', { stdout: 0, stderr: 0 }, soon());
  await assert.rejects(never, { code: 'not_found' });
});

test('what a command wrote while nobody listened, beyond the ring, is a gap', async () => {
  const stream = await start(['sh', '-c', 'head -c 1000000 /dev/zero; sleep 0.2; echo end >&2']);
  stream.detach();
  const quiet = await h.guest.attachExec(stream.id, { stdout: 0, stderr: 0 }, soon());
  for await (const _ of quiet); // to its end
  const again = await h.guest.attachExec(stream.id, { stdout: 0, stderr: 0 }, soon());
  let gap = 0;
  let data = 0;
  for await (const piece of again) {
    if (piece.channel !== 'stdout') continue;
    if ('gap' in piece) gap += piece.gap;
    else data += piece.data.length;
  }
  assert.equal(gap + data, 1_000_000);
  assert.ok(gap > 0 && data > 0, `gap ${gap}, data ${data}`);
});

test('the end of a guest is heard', async () => {
  await h.guest.power('reboot', 0, soon());
  const until = Date.now() + 5000;
  while (h.endings.length === 0 && Date.now() < until) await new Promise(resolve => setTimeout(resolve, 10));
  assert.deepEqual(h.endings, ['reboot by host']);
});
