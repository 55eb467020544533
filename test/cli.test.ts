import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { TABLE } from '../src/api/table.ts';
import { splitCommand } from '../src/cli/exec.ts';
import { commandNoun } from '../src/cli/program.ts';
import type { Handlers } from '../src/core/handler.ts';
import { sampleJob, sampleVm, type TestDoor, testDoor } from './kit/door.ts';

/** So many starts of one program are worth a cache of its code. */
const CACHE = mkdtempSync(join(tmpdir(), 'nexus-cli-'));
after(() => rmSync(CACHE, { recursive: true, force: true }));

const MAIN = join(import.meta.dirname, '../src/main.ts');
const EXEC = 'exec_01k9zzzzzzzzzzzzzzzzzzzzzz';
const base64 = (text: string): string => Buffer.from(text).toString('base64');

interface Ran {
  code: number | null;
  stdout: string;
  stderr: string;
}

const start = (socket: string, argv: readonly string[]) => {
  const env = { ...process.env, NEXUS_SOCKET: socket, NODE_COMPILE_CACHE: CACHE, TZ: 'UTC', COLUMNS: '100' };
  return spawn(process.execPath, [MAIN, 'nexusctl', ...argv], { env, stdio: 'pipe' });
};

/** nexusctl as a process of its own. */
const ctl = async (door: Pick<TestDoor, 'socket'>, argv: readonly string[], input = ''): Promise<Ran> => {
  const child = start(door.socket, argv);
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', text => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', text => {
    stderr += text;
  });
  child.stdin.on('error', () => {}).end(input);
  await once(child, 'close');
  return { code: child.exitCode, stdout, stderr };
};

const nobody = { socket: '/nonexistent/nexusd.sock' };

test('every operation has a command, and its help comes from the contract', async () => {
  const nouns = [...new Set(Object.keys(TABLE).map(name => name.split('.')[0] ?? ''))];
  await Promise.all(
    nouns.map(async noun => {
      const help = await ctl(nobody, [commandNoun(noun), '--help']);
      assert.equal(help.code, 0, help.stderr);
      for (const row of Object.values(TABLE).filter(one => one.name.startsWith(`${noun}.`))) {
        const word = row.name.split('.')[1]?.replaceAll('_', '-');
        if (row.by_flag === undefined) assert.match(help.stdout, new RegExp(`^  ${word}\\b`, 'm'));
        else
          assert.match(
            (await ctl(nobody, [noun, row.by_flag.verb, '--help'])).stdout,
            new RegExp(`^  --${row.by_flag.flag} +(List|Print) the `, 'm'),
          );
      }
    }),
  );
  const create = await ctl(nobody, ['vm', 'create', '--help']);
  assert.match(create.stdout, /--memory <size>\s+\(default: 1 GiB\)/);
  assert.match(create.stdout, /--memory <size>\s+\(default: 1 GiB\)\s+--root-size <size>\s+size of the root workspace/);
});

test('flags become the input of the operation', async () => {
  const seen: unknown[] = [];
  const keep = <T>(answer: T) => {
    return async (_ctx: unknown, input: unknown) => {
      seen.push(input);
      return answer;
    };
  };
  await using door = await testDoor({
    'vm.create': keep(sampleVm('web')),
    'vm.stop': keep(sampleVm('web')),
    'vm.delete': keep({}),
    'rootfs.download': keep(sampleJob('running')),
  });
  const created = await ctl(door, [
    'vm',
    'create',
    'web',
    '--memory',
    '2G',
    '--root-size',
    '512M',
    '--vcpus',
    '4',
    '--tag',
    'team=a',
    '--tag',
    'tier=b=c',
  ]);
  assert.equal(created.code, 0, created.stderr);
  assert.match(created.stdout, /^memory: +1 GiB$/m);
  assert.match(created.stdout, /^created: +2023-11-14 22:13:20$/m);
  assert.match(created.stdout, /^pid: +-$/m);
  await ctl(door, ['vm', 'create', 'web', '--memory-mib', '100', '--json']);
  await ctl(door, ['vm', 'stop', 'web', '--timeout', '90s', '--force']);
  const deleted = await ctl(door, ['vm', 'rm', 'web', '--keep-disk']);
  assert.deepEqual([deleted.code, deleted.stderr], [0, "Deleted: VM 'web'.\n"]);
  const job = await ctl(door, ['rootfs', 'download', 'debian', '12', '--package', 'git', '--package', 'curl', '-d']);
  assert.deepEqual([job.code, job.stdout], [0, 'job_01k9zzzzzzzzzzzzzzzzzzzzzz\n']);
  assert.partialDeepStrictEqual(seen, [
    { name: 'web', memory_mib: 2048, root_size_bytes: 512 * 1024 * 1024, vcpus: 4, tags: { team: 'a', tier: 'b=c' } },
    { name: 'web', memory_mib: 100, vcpus: 2, restart: 'never', tags: {} },
  ]);
  assert.deepEqual(seen.slice(2), [
    { vm: 'web', timeout_ms: 90_000, force: true },
    { vm: 'web', keep_disk: true },
    { distro: 'debian', version: '12', packages: ['git', 'curl'] },
  ]);
});

test('errors: one sentence, a hint, the exit code of the table', async () => {
  await using door = await testDoor({
    'vm.get': async () => {
      throw new Fault('not_found', "There is no VM 'web\u001b[31m'.", { hint: 'nexusctl vm list' });
    },
  });
  const gone = await ctl(door, ['vm', 'get', 'web']);
  assert.deepEqual(gone, { code: 4, stdout: '', stderr: "error: There is no VM 'web'.\nhint: nexusctl vm list\n" });
  const json = await ctl(door, ['vm', 'get', 'web', '--json']);
  assert.deepEqual([json.code, JSON.parse(json.stderr).code], [4, 'not_found']);
  const down = await ctl(nobody, ['vm', 'list']);
  assert.equal(down.code, 69);
  assert.match(down.stderr, /^error: No daemon answers at .*\nhint: Start the daemon with nexusd/);
  const usage: [string[], RegExp][] = [
    [['vm', 'craete', 'x'], /unknown command 'craete'/],
    [['vm', 'create', 'x', '--colour', 'red'], /unknown option '--colour'/],
    [['vm', 'create', 'x', '--vcpus', 'two'], /must be a whole number/],
    [['vm', 'create', 'x', '--memory', '512'], /with its unit/],
    [['vm', 'create', 'x', '--memory', '1G', '--memory-mib', '5'], /cannot be used with/],
    [['vm', 'start', 'x', '--wait', 'long'], /Allowed choices are ready, running, none/],
    [['vm', 'get'], /missing required argument/],
    [['provider', 'create', 'x'], /required option '--kind/],
    [['provider', 'create', 'x', '--kind', 'kernel', '--pipeline', '[}'], /must be JSON, or @FILE/],
    [['frobnicate'], /unknown command 'frobnicate'/],
  ];
  await Promise.all(
    usage.map(async ([argv, expected]) => {
      const ran = await ctl(door, argv);
      assert.equal(ran.code, 2, argv.join(' '));
      assert.match(ran.stderr, expected);
      assert.match(ran.stderr, /^hint: nexusctl .*--help/m);
    }),
  );
});

test('lists are tables, an empty one says so, and what a guest wrote cannot move the cursor', async () => {
  let vms = [sampleVm('web')];
  await using door = await testDoor({
    'vm.list': async () => vms,
    'vm.history': async () => [{ at_ms: 0, from: null, to: 'created', why: 'a\u001b[2Jb\u009bc', actor: 'api' }],
  });
  const list = await ctl(door, ['vm', 'list']);
  assert.equal(
    list.stdout,
    'ID                             NAME  STATE    GUEST  VCPUS  MEMORY  RUNS ON  PID\n' +
      'vm_01k9zzzzzzzzzzzzzzzzzzzzzz  web   created  -      2      1 GiB   -        -\n',
  );
  assert.deepEqual(JSON.parse((await ctl(door, ['--json', 'vm', 'list'])).stdout), vms);
  const history = await ctl(door, ['vm', 'history', 'web']);
  assert.match(history.stdout, /1970-01-01 00:00:00 {2}- {5}created {2}abc {2}api/);
  const json = await ctl(door, ['vm', 'history', 'web', '--json']);
  assert.doesNotMatch(json.stdout, /[\u001b\u009b]/);
  assert.equal(JSON.parse(json.stdout)[0].why, 'a\u001b[2Jb\u009bc');
  vms = [];
  assert.equal((await ctl(door, ['vm', 'ls'])).stdout, 'No VMs.\n');
});

const jobs = (end: 'succeeded' | 'failed'): Partial<Handlers> => ({
  'kernel.download': async () => sampleJob('running'),
  'job.log': async () =>
    (async function* () {
      yield { type: 'progress' as const, progress: { stage: 'download', done: 0, total: 10, unit: 'bytes' as const } };
      yield { type: 'log' as const, at_ms: 1, line: 'fetching' };
      yield { type: 'end' as const, job: sampleJob(end) };
    })(),
});

test('a job is followed: its result on standard output, its fault as exit code', async () => {
  await using good = await testDoor(jobs('succeeded'));
  const done = await ctl(good, ['kernel', 'download', '6.12', '--provider', 'debian']);
  assert.deepEqual([done.code, done.stdout], [0, 'krn_01k9zzzzzzzzzzzzzzzzzzzzzz\n']);
  assert.match(done.stderr, /^download\n.*Done in 1 ms/s);
  await using bad = await testDoor(jobs('failed'));
  const failed = await ctl(bad, ['kernel', 'download']);
  assert.equal(failed.code, 12);
  assert.match(failed.stderr, /fetching\nerror: The checksum differs\.\nhint: Try again\./);
});

test('Ctrl-C while following leaves the job alone and says how to end it', async () => {
  const following = Promise.withResolvers<void>();
  await using door = await testDoor({
    'kernel.download': async () => sampleJob('running'),
    'job.log': async ctx =>
      (async function* () {
        yield { type: 'log' as const, at_ms: 1, line: 'one' };
        following.resolve();
        await new Promise(resolve => ctx.signal.addEventListener('abort', resolve));
      })(),
  });
  const child = start(door.socket, ['kernel', 'download']);
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', text => {
    stderr += text;
  });
  await following.promise;
  child.kill('SIGINT');
  await once(child, 'close');
  assert.equal(child.exitCode, 130);
  assert.match(stderr, /job_\w+ goes on\.\nhint: nexusctl job cancel job_\w+ ends it/);
});

test('exec: bytes, the code of the command, and codes of our own', async () => {
  await using door = await testDoor({
    'exec.run': async (_ctx, { vm, argv, env, user }) => {
      if (vm === 'gone') throw new Fault('not_found', "There is no VM 'gone'.");
      if (argv[0] === 'nope') throw new Fault('not_found', 'No such program.', { reason: 'no_program' });
      if (argv[0] === '/etc') throw new Fault('invalid', 'Not executable.', { reason: 'no_permission' });
      const killed = argv[0] === 'kill';
      return (async function* () {
        yield { type: 'started' as const, exec: EXEC, pid: 9 };
        yield { type: 'stdout' as const, data: base64(`${JSON.stringify({ argv, env, user })}\u001b[1m`) };
        yield { type: 'stderr' as const, data: base64('warn') };
        const end = { timed_out: false, duration_ms: 1 };
        if (killed) yield { type: 'exit' as const, exit_code: null, signal: 'KILL', ...end };
        else yield { type: 'exit' as const, exit_code: 7, signal: null, ...end };
      })();
    },
  });
  const ran = await ctl(door, ['exec', 'web', '-u', 'bob', '-e', 'A=1=2', '-e', 'B=', 'ls', '-l', '--json']);
  assert.deepEqual(ran, {
    code: 7,
    stdout: '{"argv":["ls","-l","--json"],"env":{"A":"1=2","B":""},"user":"bob"}\u001b[1m',
    stderr: 'warn',
  });
  const code = async (...argv: string[]) => (await ctl(door, ['exec', ...argv])).code;
  assert.equal(await code('web', '--', 'kill'), 137);
  assert.equal(await code('web', 'nope'), 127);
  assert.equal(await code('web', '/etc'), 126);
  assert.equal(await code('gone', 'true'), 125);
  assert.equal(await code('web'), 125);
  assert.equal((await ctl(nobody, ['exec', 'web', 'true'])).code, 125);
});

test('exec -i passes standard input on; Ctrl-C is told to the command first', async () => {
  const ended = Promise.withResolvers<string>();
  const running = Promise.withResolvers<void>();
  await using door = await testDoor({
    'exec.run': async (_ctx, input) =>
      (async function* () {
        yield { type: 'started' as const, exec: EXEC, pid: 9 };
        running.resolve();
        const got = await ended.promise;
        yield { type: 'stdout' as const, data: base64(`${input.stdin} ${got}`) };
        yield { type: 'exit' as const, exit_code: 3, signal: null, timed_out: false, duration_ms: 1 };
      })(),
    'exec.stdin': async ctx => {
      const chunks: Buffer[] = [];
      for await (const chunk of ctx.body ?? []) chunks.push(chunk);
      ended.resolve(Buffer.concat(chunks).toString());
      return { bytes: 1 };
    },
    'exec.signal': async (_ctx, { signal }) => {
      ended.resolve(signal);
      return {};
    },
  });
  const fed = await ctl(door, ['exec', '-i', 'web', 'cat'], 'hello');
  assert.deepEqual([fed.code, fed.stdout], [3, 'open hello']);
  const told = Promise.withResolvers<string>();
  await using other = await testDoor({
    'exec.run': async () =>
      (async function* () {
        yield { type: 'started' as const, exec: EXEC, pid: 9 };
        yield { type: 'stdout' as const, data: base64('on') };
        const signal = await told.promise;
        yield { type: 'exit' as const, exit_code: null, signal, timed_out: false, duration_ms: 1 };
      })(),
    'exec.signal': async (_ctx, { signal }) => {
      told.resolve(signal);
      return {};
    },
  });
  const child = start(other.socket, ['exec', 'web', 'sleep', '9']);
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  await once(child, 'close');
  assert.equal(child.exitCode, 130);
});
test('a closed pipe ends quietly, and the command behind it is told', async () => {
  const signalled = Promise.withResolvers<string>();
  await using door = await testDoor({
    'exec.run': async () =>
      (async function* () {
        yield { type: 'started' as const, exec: EXEC, pid: 9 };
        for (;;) yield { type: 'stdout' as const, data: base64('y\n'.repeat(30_000)) };
      })(),
    'exec.signal': async (_ctx, { signal }) => {
      signalled.resolve(signal);
      return {};
    },
    'vm.logs': async () =>
      (async function* () {
        for (;;) yield { type: 'line' as const, line: 'x'.repeat(10_000) };
      })(),
  });
  for (const argv of [
    ['exec', 'web', 'yes'],
    ['logs', 'web', '-f'],
  ]) {
    const child = start(door.socket, argv);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', text => {
      stderr += text;
    });
    child.stdout.once('data', () => child.stdout.destroy());
    await once(child, 'close');
    assert.deepEqual([child.exitCode, stderr], [141, ''], argv.join(' '));
  }
  assert.equal(await signalled.promise, 'TERM');
});

test('completion gives commands, flags, choices and names', async () => {
  await using door = await testDoor({ 'vm.list': async () => [sampleVm('web'), sampleVm('worker')] });
  const words = async (...argv: string[]) => (await ctl(door, ['__complete', ...argv])).stdout.trim().split('\n');
  assert.deepEqual(await words('k'), ['kernel']);
  assert.deepEqual(await words('vm', 'st'), ['start', 'stop']);
  assert.deepEqual(await words('vm', 'create', 'x', '--mem'), ['--memory']);
  assert.deepEqual(await words('vm', 'start', 'w'), ['web', 'worker']);
  assert.deepEqual(await words('exec', 'wo'), ['worker']);
  assert.deepEqual(await words('vm', 'start', 'web', '--wait', 'r'), ['ready', 'running']);
  for (const shell of ['bash', 'zsh', 'fish']) {
    const script = await ctl(nobody, ['completion', shell]);
    assert.match(script.stdout, /nexusctl __complete/, shell);
  }
  assert.equal((await ctl(nobody, ['completion', 'csh'])).code, 2);
});

test('the words of exec are split where the command begins', () => {
  const takes = (flag: string) => ['-u', '--user', '-e'].includes(flag);
  const split = (line: string) => splitCommand(line.split(' '), takes).join(' ');
  assert.equal(split('web ls -l'), 'web -- ls -l');
  assert.equal(split('-u bob web ls'), '-u bob web -- ls');
  assert.equal(split('web --user=bob ls -u x'), 'web --user=bob -- ls -u x');
  assert.equal(split('web -- ls -l'), 'web -- ls -l');
  assert.equal(split('web'), 'web');
  assert.equal(split('web -i'), 'web -i');
});
