/** `nexusctl cp`: what arrives, what is refused, and copies that are interrupted. The agent runs on this host and has its files. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { after, before, test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { handlersOver } from '../src/core/fs.ts';
import { type HttpDoor, openHttp } from '../src/daemon/http.ts';
import { poll, withDeadline } from '../src/lib/deadline.ts';
import { silentLog } from '../src/lib/log.ts';
import { run, runAny } from '../src/lib/proc.ts';
import { stubs } from './kit/door.ts';
import { type Harness, harness } from './kit/harness.ts';
import { archive } from './kit/tar.ts';
import { REPO } from './kit/world.ts';

const MIB = 1024 * 1024;

let h: Harness;
let door: HttpDoor;
let dir: string;
/** Set: the VM has ended. */
let ended: AbortController;

const socket = () => join(dir, '.door', 's');

/** What a guest sends in the place of a tree, by its path. */
const sent = new Map<string, Buffer>();

/** A door to the files of the agent that runs on this host, as the daemon's. */
const open_door = async (): Promise<HttpDoor> => {
  const handlers = handlersOver(async (ctx, vm) => {
    if (vm !== 'box') throw new Fault('not_found', `There is no VM '${vm}'.`);
    ended.signal.throwIfAborted();
    return [h.guest.files, AbortSignal.any([ctx.signal, ended.signal])];
  });
  const lies: typeof handlers = {
    ...handlers,
    'fs.export': async (ctx, input) => {
      const tree = await handlers['fs.export'](ctx, input);
      const bytes = sent.get(input.path);
      return bytes === undefined ? tree : { ...tree, bytes: Readable.from([bytes]), [Symbol.dispose]: () => {} };
    },
  };
  return await openHttp({ handlers: stubs(lies), socket: socket(), log: silentLog(), check_output: true });
};

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-cp-'));
  h = await harness();
  ended = new AbortController();
  door = await open_door();
});
after(async () => {
  await door.close();
  await h[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

/** nexusctl, as a process. */
const ctl = (...args: string[]) =>
  runAny([process.execPath, join(REPO, 'src/main.ts'), 'nexusctl', '--socket', socket(), ...args], {
    timeout_ms: 120_000,
  });

const at = (name: string) => join(dir, name);
const guest = (name: string) => `box:${at(name)}`;

const cp = async (...args: string[]): Promise<void> => {
  const { code, stderr } = await ctl('cp', ...args);
  assert.deepEqual([code, stderr], [0, '']);
};

const refused = async (code: number, message: RegExp, ...args: string[]): Promise<void> => {
  const said = await ctl('cp', ...args);
  assert.equal(said.code, code, said.stderr);
  assert.match(said.stderr, message);
};

/** Files that a copy made for its own use and has to have removed. */
const leftovers = async (): Promise<string[]> =>
  (await readdir(dir, { recursive: true })).filter(name => /\.nexus-|\.part$/.test(name));

const sha = async (path: string) => {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  return hash.digest('hex');
};

/** One line a file: what a copy keeps. */
const facts = async (root: string): Promise<string> =>
  (await run(['find', root, '-printf', '%P %M %s %T@ %l\n'])).stdout.split('\n').sort().join('\n');

const sample = async (root: string): Promise<void> => {
  await mkdir(join(root, 'sub/deep'), { recursive: true });
  await writeFile(join(root, 'sub/file'), 'text');
  await writeFile(join(root, 'sub/deep/späce näme'), randomBytes(100_000));
  await writeFile(Buffer.concat([Buffer.from(`${root}/sub/by`), Buffer.from([0xff, 0xfe])]), 'bytes');
  await chmod(join(root, 'sub/file'), 0o751);
  await symlink('../no/where', join(root, 'sub/link'));
  await symlink('/etc/hostname', join(root, 'etc'));
  const sparse = await open(join(root, 'sparse'), 'w');
  await sparse.write('x', 9 * MIB);
  await sparse.truncate(20 * MIB);
  await sparse.close();
  await utimes(join(root, 'sub/file'), 1_000_000_000.25, 1_000_000_000.25);
  await utimes(join(root, 'sub/deep'), 1_000_000_000, 1_000_000_000);
};

test('a tree goes in and comes out as it was: names, modes, times, links, holes', { timeout: 120_000 }, async () => {
  await sample(at('src'));
  const wanted = await facts(at('src'));
  await cp(at('src'), guest('in'));
  assert.equal(await facts(at('in')), wanted);
  await cp(guest('in'), at('out'));
  assert.equal(await facts(at('out')), wanted);
  assert.ok((await stat(at('out/sparse'))).blocks * 512 < MIB);
  await cp(at('src'), guest('in')); // into it
  assert.equal(await facts(at('in/src')), wanted);
  await cp(guest('src'), at('out'));
  assert.equal(await facts(at('out/src')), wanted);
  await rm(at('in/src'), { recursive: true });
  await writeFile(at('in/sub/more'), 'stays');
  await cp(`${at('src')}/.`, guest('in')); // what is in it, over what is there
  assert.deepEqual(
    [await readFile(at('in/sub/more'), 'utf8'), await readlink(at('in/etc'))],
    ['stays', '/etc/hostname'],
  );
  await rm(at('out'), { recursive: true });
  await mkdir(at('out/sub'), { recursive: true });
  await writeFile(at('out/sub/more'), 'stays');
  await cp(`${guest('src')}/.`, at('out'));
  await rm(at('out/sub/more'));
  const merged = (text: string) => text.replaceAll(/^(sub)? d.*\n/gm, ''); // their times are kept to the millisecond
  assert.equal(merged(await facts(at('out'))), merged(wanted));
  assert.deepEqual(await leftovers(), []);
});

test('single files, links, standard input and output', { timeout: 120_000 }, async () => {
  await cp(at('src/sub/file'), guest('one'));
  await cp(guest('one'), at('two'));
  for (const name of ['one', 'two']) {
    const info = await stat(at(name));
    assert.deepEqual(
      [await readFile(at(name), 'utf8'), info.mode & 0o7777, info.mtimeMs],
      ['text', 0o751, 1_000_000_000_250],
    );
  }
  await mkdir(at('d'));
  await cp(at('src/sub/link'), guest('d'));
  await cp(guest('d/link'), at('d2'));
  assert.deepEqual([await readlink(at('d/link')), await readlink(at('d2'))], ['../no/where', '../no/where']);
  await symlink('behind', at('d/to'));
  await cp(at('src/sub/file'), guest('d/to'));
  assert.equal(await readFile(at('d/behind'), 'utf8'), 'text', 'written through');
  const sh = (script: string) =>
    run(['sh', '-c', script], {
      env: { ...process.env, NEXUS_SOCKET: socket(), CTL: `${process.execPath} ${join(REPO, 'src/main.ts')} nexusctl` },
    });
  assert.equal((await sh(`printf in | $CTL cp - ${guest('std')}; $CTL cp ${guest('std')} -`)).stdout, 'in');
  await mkdir(at('unpacked'));
  await sh(`$CTL cp ${guest('src/sub')} - | $CTL cp - ${guest('unpacked')}`);
  assert.equal(await facts(at('unpacked')), await facts(at('src/sub')));
  assert.deepEqual(JSON.parse((await ctl('cp', '--json', guest('one'), at('three'))).stdout), { bytes: 4 });
  assert.deepEqual(await leftovers(), []);
});

test('set-uid stays behind, unless --archive', { timeout: 120_000 }, async () => {
  await mkdir(at('suid'));
  await writeFile(at('suid/x'), '');
  await chmod(at('suid/x'), 0o6755);
  const mode = async (name: string) => ((await stat(at(name))).mode & 0o7777).toString(8);
  for (const [n, from, to] of [
    ['1', at('suid'), guest('s1')],
    ['2', guest('suid'), at('s2')],
  ] as const) {
    await cp(from, to);
    await cp('--archive', from, n === '1' ? guest('a1') : at('a2'));
    assert.deepEqual([await mode(`s${n}/x`), await mode(`a${n}/x`)], ['755', '6755']);
  }
  await cp(guest('suid/x'), at('s3'));
  await cp('-a', guest('suid/x'), at('a3'));
  assert.deepEqual([await mode('s3'), await mode('a3')], ['755', '6755']);
});

test('what cannot be copied is refused in a sentence, and leaves nothing', { timeout: 120_000 }, async () => {
  await refused(2, /one of both is in a VM/, at('src'), at('x'));
  await refused(2, /one of both is in a VM/, guest('src'), guest('x'));
  await refused(2, /a path in a VM is absolute\.\nhint: box:\/etc, or/, 'box:etc', at('x'));
  await refused(4, /there is no such file/, at('none'), guest('x'));
  await refused(4, /'.*none': there is no such file or directory/, guest('none'), at('x'));
  await refused(4, /no such directory/, at('one'), `${guest('none')}/`);
  await refused(4, /there is no directory/, guest('one'), at('none/x'));
  await refused(4, /there is no such file or directory/, at('src'), guest('none/x'));
  await refused(2, /what should be a directory is none/, at('src'), guest('one'));
  await refused(5, /what is there is no directory/, guest('src'), at('one'));
  await refused(2, /no file, directory or link/, '/dev/null', guest('x'));
  await refused(2, /not a regular file/, 'box:/dev/null', at('x'));
  await refused(4, /no VM 'nobody'/, at('one'), 'nobody:/x');
  assert.deepEqual((await leftovers()).concat((await readdir(dir)).filter(n => n === 'x')), []);
});

test('what is no file is never replaced by one, and a link is written through', { timeout: 120_000 }, async () => {
  await run(['mkfifo', at('fifo')]);
  const special = ['fifo'];
  if (process.getuid?.() === 0) {
    await run(['mknod', at('node'), 'c', '1', '3']);
    await symlink('node', at('to-node'));
    special.push('node', 'to-node');
  } else console.log('no device node: that needs root');
  for (const name of special) {
    await refused(2, /it is no file\.\nhint: nexusctl cp VM:PATH - writes/, guest('one'), at(name));
    await refused(2, /it is no file\./, guest('d/link'), at(name === 'to-node' ? 'node' : name)); // a link, too
  }
  assert.ok((await lstat(at('fifo'))).isFIFO());
  if (special.includes('node')) assert.ok((await lstat(at('node'))).isCharacterDevice());
  await mkdir(at('far'));
  await writeFile(at('far/file'), 'old');
  await symlink('far/file', at('to-file'));
  await cp(guest('one'), at('to-file'));
  assert.deepEqual([await readlink(at('to-file')), await readFile(at('far/file'), 'utf8')], ['far/file', 'text']);
  await symlink('far/none', at('to-none'));
  await refused(2, /to-none': it is a link that leads nowhere\./, guest('one'), at('to-none'));
  assert.deepEqual(await readdir(at('far')), ['file']);
  await mkdir(at('far/one'));
  await refused(5, /a directory is there/, guest('one'), at('far'));
  assert.deepEqual(await leftovers(), []);
  for (const name of ['fifo', 'to-node', 'node', 'to-file', 'to-none', 'far'])
    await rm(at(name), { recursive: true, force: true });
});

test('standard input that nobody ends keeps no copy that was refused', { timeout: 120_000 }, async () => {
  await mkdir(at('slow'));
  const cases: [to: string, signal: boolean, code: number, message: RegExp][] = [
    [guest('none/x'), false, 4, /there is no such file or directory/],
    ['nobody:/x', false, 4, /no VM 'nobody'/],
    [guest('slow/x'), true, 130, /Copying was given up/],
  ];
  for (const [to, interrupted, code, message] of cases) {
    const argv = [join(REPO, 'src/main.ts'), 'nexusctl', '--socket', socket(), 'cp', '-', to];
    const child = spawn(process.execPath, argv, { stdio: ['pipe', 'ignore', 'pipe'] });
    const closed = once(child, 'close');
    try {
      const said = text(child.stderr);
      child.stdin.on('error', () => {}).write('some');
      if (interrupted) {
        const begun = async () => (await readdir(at('slow'))).length > 0 || undefined;
        await poll('what the guest writes', 30_000, begun);
        child.kill('SIGINT');
      }
      await withDeadline(`the end of cp - ${to}`, 30_000, closed);
      assert.match(await said, message);
      assert.equal(child.exitCode, code);
    } finally {
      child.kill('SIGKILL');
      await closed;
    }
  }
  assert.deepEqual(await leftovers(), []);
});

test('device nodes stay behind, unless --archive', {
  timeout: 120_000,
  skip: process.getuid?.() !== 0 ? 'needs root to make device nodes' : false,
}, async () => {
  await mkdir(at('dev/sub'), { recursive: true });
  await run(['mknod', at('dev/null'), 'c', '1', '3']);
  await writeFile(at('dev/sub/x'), 'x');
  await cp(guest('dev'), at('clean'));
  assert.deepEqual((await readdir(at('clean'), { recursive: true })).sort(), ['sub', 'sub/x']);
  await cp('--archive', guest('dev'), at('kept'));
  assert.ok((await lstat(at('kept/null'))).isCharacterDevice());
});

test('a guest that sends an archive of its own making reaches nothing but the target', {
  timeout: 240_000,
}, async () => {
  const outside = at('outside');
  await mkdir(outside);
  await writeFile(join(outside, 'file'), 'good');
  await mkdir(at('evil'));
  const before = (await readdir(dir)).sort();
  const up = '../'.repeat(12);
  const lies: Record<string, Buffer> = {
    'a link, then a file behind it': archive(
      { name: './l', type: '2', link: outside },
      { name: './l/file', data: 'evil' },
    ),
    'a relative link': archive({ name: './l', type: '2', link: '../../outside' }, { name: './l/file', data: 'evil' }),
    'a link, then a directory of its name': archive(
      { name: './l', type: '2', link: outside },
      { name: './l/', type: '5', mode: 0o777 },
      { name: './l/file', data: 'evil' },
    ),
    'a name with ..': archive({ name: `./${up}${outside.slice(1)}/file`, data: 'evil' }),
    'an absolute name': archive({ name: `${outside}/file`, data: 'evil' }),
    'a hard link to outside': archive(
      { name: './h', type: '1', link: `${outside}/file` },
      { name: './h', data: 'evil' },
    ),
    'a hard link with ..': archive(
      { name: './h', type: '1', link: `../../outside/file` },
      { name: './h', data: 'evil' },
    ),
    'set-uid and a device': archive({ name: './s', mode: 0o6755 }, { name: './n', type: '3', device: [1, 3] }),
    'an archive that is cut': archive({ name: './x', data: 'x'.repeat(5000) }).subarray(0, 2000),
    rubbish: randomBytes(20_000),
    nothing: Buffer.alloc(0),
  };
  for (const [name, bytes] of Object.entries(lies)) {
    sent.set(at('evil'), bytes);
    const { code, stderr } = await ctl('cp', guest('evil'), at('taken'));
    assert.ok(code === 0 || /^error: [^\n]+\n/.test(stderr), `${name}: ${stderr}`);
    const { stdout } = await run(['find', dir, '-perm', '/6000', '-newer', join(outside, 'file'), '-o', '-type', 'c']);
    assert.deepEqual([await readFile(join(outside, 'file'), 'utf8'), await readdir(outside)], ['good', ['file']], name);
    assert.ok(!stdout.includes('taken'), `${name}: ${stdout}`);
    await rm(at('taken'), { recursive: true, force: true });
    assert.deepEqual((await readdir(dir)).sort(), before, name);
  }
  sent.clear();
});

const SIZE = 192 * MIB;

/** Waits until a file that is being copied has got so far. */
const reached = (part: RegExp, bytes: number) =>
  poll(
    'the copy',
    60_000,
    async () => {
      const name = (await readdir(dir)).find(n => part.test(n));
      return name !== undefined && (await stat(at(name)).catch(() => ({ size: 0 }))).size > bytes ? true : undefined;
    },
    { every_ms: 2 },
  );

test('a large file goes on where it stood when the guest or the daemon is lost and comes back', {
  timeout: 240_000,
}, async () => {
  await writeFile(at('large'), Buffer.concat(Array(SIZE / MIB).fill(randomBytes(MIB))));
  await chmod(at('large'), 0o640);
  const wanted = await sha(at('large'));
  for (const [from, to, part] of [
    [at('large'), guest('large-in'), /^\.nexus-cp-/],
    [guest('large'), at('large-out'), /\.part$/],
  ] as const) {
    const copying = ctl('cp', from, to);
    await reached(part, 4 * MIB);
    h.proxy.cut();
    await reached(part, 24 * MIB);
    await door.close();
    door = await open_door();
    const { code, stderr } = await copying;
    assert.deepEqual([code, stderr], [0, '']);
  }
  for (const name of ['large-in', 'large-out']) {
    assert.equal(await sha(at(name)), wanted);
    assert.equal((await stat(at(name))).mode & 0o7777, 0o640);
  }
  assert.deepEqual(await leftovers(), []);
});

test('on a terminal a copy shows how far it is, and Ctrl-C leaves nothing', { timeout: 120_000 }, async () => {
  const typed = `'${process.execPath}' '${join(REPO, 'src/main.ts')}' nexusctl --socket '${socket()}' cp`;
  const argv = ['script', '-qec', `stty cols 100; ${typed} '${guest('large')}' '${at('shown')}'`, '/dev/null'];
  const { stdout } = await runAny(argv, { timeout_ms: 60_000 });
  assert.match(stdout, /\r\u001b\[Kcopy {2}\[#*-*\] +\d+% {2}[\d.]+ \w+ of 192 MiB/);
  assert.match(stdout, /\r\u001b\[K$/, 'the line is removed at the end');
  await rm(at('shown'));
  for (const [from, to] of [
    [at('large'), guest('broken')],
    [guest('large'), at('broken')],
    [guest('.'), at('broken')],
  ] as const) {
    const script = `${typed} '${from}' '${to}' & p=$!; echo up; read x; kill -INT $p; wait $p; echo code $?`;
    const input = new Readable({ read() {} });
    const copying = runAny(['bash', '-c', `set -m; ${script}`], { input, timeout_ms: 60_000 });
    await reached(/^\.nexus-cp-|\.part$/, 0);
    input.push('\n');
    input.push(null);
    const said = await copying;
    assert.match(said.stdout, /^up\ncode 130\n$/);
    assert.match(said.stderr, /error: Copying was given up\.\n/);
    await poll('the end of what was begun', 5000, async () => (await leftovers()).length === 0 || undefined);
    assert.ok(!(await readdir(dir)).includes('broken'));
  }
});

test('a VM that ends in the middle of a copy: a sentence, no part that looks whole', { timeout: 120_000 }, async () => {
  for (const args of [
    [at('large'), guest('lost')],
    [guest('large'), at('lost')],
    [guest('.'), at('lost')],
  ]) {
    const copying = ctl('cp', ...args);
    await reached(/^\.nexus-cp-|\.part$/, 0);
    ended.abort(new Fault('bad_state', 'The VM has ended.'));
    const { code, stderr } = await copying;
    ended = new AbortController();
    assert.notEqual(code, 0);
    assert.match(stderr, /^error: [^\n]+\.\n(hint: [^\n]+\n)?$/);
    assert.ok(!(await readdir(dir)).includes('lost'));
  }
});
