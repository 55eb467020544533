/** What is said of the host: doctor, with and without a daemon, and the notice of emulation. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import type { DoctorReport } from '../src/api/daemon.ts';
import { type RunResult, run, runAny } from '../src/lib/proc.ts';
import { agentBinaries } from './kit/agent.ts';
import { REPO, world } from './kit/world.ts';

const MAIN = join(REPO, 'src/main.ts');
const check = (report: DoctorReport, name: string) => report.checks.find(one => one.name === name);

/** nexusd --doctor, with a probe that says `kvm`. */
const alone = async (
  kvm: string,
  env: Record<string, string>,
  data_dir: string,
): Promise<RunResult & { lines: string[] }> => {
  const { probe, agent_x86_64 } = await agentBinaries();
  const dir = await mkdtemp(join(tmpdir(), 'nx-doctor-'));
  try {
    const file = join(dir, 'nexus-probe');
    const script = `#!/bin/sh\ncase $1 in kvm) echo '${kvm}' ;; *) exec ${probe} "$@" ;; esac\n`;
    await writeFile(file, script, { mode: 0o755 });
    await run(['ln', '-s', agent_x86_64, join(dir, 'nexus-agent-x86_64')]);
    const argv = [process.execPath, MAIN, 'nexusd', '--doctor', '--data-dir', data_dir];
    const said = await runAny(argv, { env: { ...process.env, NEXUS_AGENT_DIR: dir, ...env }, timeout_ms: 60_000 });
    return { ...said, lines: said.stdout.split('\n') };
  } finally {
    await rm(dir, { recursive: true });
  }
};

const KVM_WORDS: [answer: string, line: RegExp, hint: RegExp][] = [
  [
    '{"usable":false,"reason":"no-device","detail":"there is no /dev/kvm"}',
    /^warn +kvm +no-device: there is no \/dev\/kvm$/,
    /^ +-> (modprobe kvm_|switch on virtualization)/,
  ],
  [
    '{"usable":false,"reason":"no-permission","detail":"/dev/kvm may not be opened by this user"}',
    /^warn +kvm +no-permission: \/dev\/kvm may not be opened/,
    /^ +-> usermod -aG kvm \S+, then log in again$/,
  ],
  [
    '{"usable":false,"reason":"guest-does-not-run","detail":"it hangs \\u001b[31mred"}',
    /^warn +kvm +guest-does-not-run: it hangs red$/,
    /^ +-> take a host on which/,
  ],
];

test('nexusd --doctor: each reason of KVM with what mends it; nothing is left behind', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nx-doctor-'));
  try {
    for (const [answer, line, hint] of KVM_WORDS) {
      const said = await alone(answer, {}, join(dir, 'none'));
      const at = said.lines.findIndex(one => /^\w+ +kvm /.test(one));
      assert.match(said.lines[at] ?? '', line);
      assert.match(said.lines[at + 1] ?? '', hint);
      assert.ok(
        said.lines.some(one => /^warn +accelerator +VMs run on qemu, emulated/.test(one)),
        said.stdout,
      );
      assert.equal(said.code, 0, said.stdout);
    }
    assert.deepEqual(await readdir(dir), []);
  } finally {
    await rm(dir, { recursive: true });
  }
});

const ROOT = process.getuid?.() === 0;
/** What is wrong where nothing is right, and how what mends it begins: as a command, or with what to do. */
const MENDS: Record<string, ['warn' | 'fail', RegExp]> = {
  kvm: ['warn', /^take a host on which/],
  firecracker: ['warn', /^nexusctl firecracker download/],
  qemu: ['warn', /^apt-get install .*qemu-system-x86$/],
  accelerator: ['fail', /^apt-get install .*qemu-system-x86$/],
  tsc: ['warn', /^\/\S+\/nexus-probe tsc, which says why$/],
  data: ['fail', /^nexusd --data-dir DIR$/],
  agent: ['fail', /^\.\/nexus build, or /],
  mke2fs: ['warn', /^apt-get install e2fsprogs$/],
  packages: ['warn', /^apt-get install apt mmdebstrap xz-utils$/],
  cgroup: ['warn', ROOT ? /^mount -t cgroup2 / : /^systemd-run --user /],
  ...(ROOT
    ? {
        isolation: ['fail', /^apt-get install util-linux$/],
        disk: ['warn', /^mend that, and ask again$/],
        space: ['fail', /^free some space on the file system of \//],
      }
    : { 'user-namespaces': ['warn', /^sysctl -w /] }),
};

test('nexusd --doctor: where nothing is right, each line has what mends it', {
  skip: process.arch !== 'x64' && 'QEMU and the TSC are of x86_64',
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nx-doctor-'));
  try {
    const none = join(dir, 'none');
    await mkdir(none);
    // root may write wherever something can be written: it looks at a full file system that cannot be
    const [data_dir, before] = ROOT
      ? [
          dir,
          ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs -o ro,size=16m none "$0" && PATH=/none exec "$@"', dir],
        ]
      : ['/nexus-doctor', ['sh', '-c', 'PATH=/none exec "$@"', 'sh']];
    const argv = [...before, process.execPath, MAIN, 'nexusd', '--doctor', '--data-dir', data_dir];
    const nowhere = {
      NEXUS_QEMU: '',
      NEXUS_FIRECRACKER: '',
      NEXUS_AGENT_DIR: none,
      NEXUS_MKE2FS: join(none, 'mke2fs'),
    };
    const said = await runAny(argv, { env: { ...process.env, ...nowhere }, timeout_ms: 60_000 });
    assert.equal(said.code, 8, said.stdout + said.stderr);
    const lines = said.stdout.split('\n');
    const wrong = lines.flatMap((line, i) => {
      const [, level, name] = /^(warn|fail) +(\S+) /.exec(line) ?? [];
      return level === undefined || name === undefined ? [] : [{ name, level, hint: lines[i + 1] ?? '' }];
    });
    for (const { name, level, hint } of wrong) {
      const [wanted, mends] = MENDS[name] ?? assert.fail(`${name} is not in the list:\n${said.stdout}`);
      assert.equal(level, wanted, name);
      assert.match(/^ +-> (.*)$/.exec(hint)?.[1] ?? '', mends, name);
    }
    assert.deepEqual(wrong.map(one => one.name).sort(), Object.keys(MENDS).sort(), said.stdout);
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('nexusd --doctor: no VMM is a failure, with its exit code; a daemon that runs is seen', async () => {
  await using w = await world();
  const answer = KVM_WORDS[0]?.[0] ?? '';
  const none = await alone(answer, { NEXUS_QEMU: '/nonexistent', NEXUS_FIRECRACKER: '/nonexistent' }, w.data_dir);
  assert.equal(none.code, 8);
  assert.ok(
    none.lines.some(one => /^fail +accelerator +no VM can run: .*there is no QEMU/.test(one)),
    none.stdout,
  );
  assert.ok(
    none.lines.some(one => /^ok +data +.*; a daemon runs on it$/.test(one)),
    none.stdout,
  );
  assert.deepEqual(
    (await readdir(w.data_dir)).filter(name => name.startsWith('.probe')),
    [],
  );
  await w.client.daemon.ping({}); // its lock held
  await w.stop();
  const free = await alone(answer, {}, w.data_dir);
  assert.ok(
    free.lines.some(one => /^ok +data +.*; no daemon runs on it$/.test(one)),
    free.stdout,
  );
});

test('doctor asks the daemon; without one it says what to do and ends with 69', async () => {
  await using w = await world();
  const report = await w.client.daemon.doctor({});
  const names = report.checks.map(one => one.name);
  for (const name of [
    'kvm',
    'firecracker',
    'qemu',
    'accelerator',
    'isolation',
    'tsc',
    'data',
    'disk',
    'space',
    'agent',
  ])
    assert.equal(names.filter(one => one === name).length, 1, name);
  for (const one of report.checks) {
    assert.doesNotMatch(one.detail, /\.$|\n|undefined/);
    if (one.level !== 'ok') assert.ok(one.detail !== '' && (one.hint ?? '') !== '', one.name);
  }
  assert.equal(report.able, !report.checks.some(one => one.level === 'fail'));
  assert.deepEqual(
    [check(report, 'kernel')?.level, check(report, 'kernel')?.hint],
    ['warn', 'nexusctl kernel download --provider debian'],
  );
  assert.match(check(report, 'image')?.hint ?? '', /^nexusctl rootfs download debian 12 && nexusctl image build /);
  assert.match(check(report, 'data')?.detail ?? '', /held by this daemon/);
  assert.equal(check(report, 'qemu')?.level, 'ok');
  const said = await w.ctl('doctor');
  assert.equal(said.code, report.able ? 0 : 8, said.stderr);
  assert.match(said.stdout, /^(ok|warn) {2,}kvm /m);
  assert.ok(!said.stdout.includes('\u001b'), 'no colours where there is no terminal');
  assert.deepEqual(JSON.parse((await w.ctl('daemon', 'doctor', '--json')).stdout).checks.length, names.length);
  await w.stop();
  const down = await w.ctl('doctor');
  assert.equal(down.code, 69);
  assert.match(down.stderr, /^error: No daemon answers.*\nhint: Start the daemon with nexusd.*\nhint: nexusd --doctor/);
});

test('a daemon that finds no VMM: doctor fails and says what mends it', async () => {
  await using w = await world({ qemu: '/nonexistent' });
  const report = await w.client.daemon.doctor({});
  assert.equal(report.able, false);
  assert.deepEqual(check(report, 'accelerator')?.level, 'fail');
  assert.match(check(report, 'accelerator')?.hint ?? '', /^apt-get install/);
  assert.equal((await w.ctl('doctor')).code, 8);
  assert.equal((await w.ctl('doctor', '--json')).code, 8);
});

test('emulation announces itself once in a data directory', async () => {
  await using w = await world({ seed: 'booted' });
  for (const name of ['one', 'two', 'three']) await w.client.vm.create({ name, memory_mib: 64 });
  const said = await w.ctl('vm', 'start', 'one');
  assert.equal(said.code, 0, said.stderr);
  const { accel } = await w.client.vm.get({ vm: 'one' });
  if (accel === 'kvm') assert.equal(said.stderr, '', 'nothing is emulated');
  else assert.match(said.stderr, /^note: VM 'one' is emulated, which is slow: .*What would make it fast: .*\n$/);
  assert.doesNotMatch(said.stdout, /notice/);
  assert.equal((await w.client.vm.start({ vm: 'two' })).notice, undefined);
  await w.stop();
  await w.start();
  const again = await w.ctl('vm', 'start', 'three', '--json');
  assert.deepEqual([again.stderr, JSON.parse(again.stdout).notice], ['', undefined]);
});
