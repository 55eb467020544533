/** The demo, whole, and cut off at each step that it prints. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { poll } from '../src/lib/deadline.ts';
import { agentBinaries } from './kit/agent.ts';
import { copySeed, REPO, seed } from './kit/world.ts';

interface Run {
  code: number | null;
  output: string;
  /** The steps it printed, without their mark. */
  steps: string[];
}

/** Runs the demo; with `at`, interrupts it as soon as it prints that step. */
const demo = async (dir: string, at?: RegExp): Promise<Run> => {
  const { probe } = await agentBinaries();
  const env = { ...process.env, NEXUS_AGENT_DIR: dirname(probe), NEXUS_CHECK_OUTPUT: '1' };
  const args = [join(REPO, 'src/main.ts'), 'nexusctl', 'demo', '--data-dir', dir];
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'], timeout: 240_000 });
  let output = '';
  let sent = at === undefined;
  const take = (chunk: Buffer) => {
    output += chunk.toString();
    if (sent || at === undefined || !at.test(output)) return;
    sent = true;
    child.kill('SIGINT');
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const code = await new Promise<number | null>(resolve => child.once('close', resolve));
  assert.ok(sent, `it never printed ${at}: ${output}`);
  return { code, output, steps: [...output.matchAll(/^==> (.*)$/gm)].map(m => m[1] ?? '') };
};

/** Processes that work in the directory or were given it. */
const processes = async (dir: string): Promise<string[]> => {
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const args = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).replaceAll('\0', ' ');
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => '');
    if (args.includes(dir) || cwd.startsWith(dir)) found.push(`${pid} ${args}`);
  }
  return found;
};

const nothingLeft = async (dir: string): Promise<void> => {
  // a process that was killed needs a moment to be gone
  await poll('no process', 5000, async () => ((await processes(dir)).length === 0 ? true : undefined)).catch(() => {});
  assert.deepEqual(await processes(dir), []);
  const files = await readdir(dir);
  assert.ok(!files.includes('nexusd.sock'), 'the socket is gone');
  for (const name of ['vms', 'workspaces', 'tmp']) {
    if (files.includes(name)) assert.deepEqual(await readdir(join(dir, name)), [], name);
  }
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  assert.ok(!mounts.includes(dir), 'no mount');
};

test('the demo shows what came from inside, how long it took, and leaves nothing running', {
  timeout: 300_000,
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nxd-'));
  try {
    await copySeed(await seed(), dir);
    const first = await demo(dir);
    assert.equal(first.code, 0, first.output);
    assert.match(first.output, /Linux demo 6\.12\.\d+\S*-cloud-amd64 /);
    assert.match(first.output, /PRETTY_NAME="Debian GNU\/Linux 12 \(bookworm\)"/);
    assert.match(first.output, /uid=0\(root\) gid=0\(root\)/);
    assert.match(first.output, /VMM: qemu .* with (emulation \(TCG\)|KVM)/);
    for (const row of ['daemon', 'image', 'boot', 'uname -a', 'all of it']) {
      assert.match(first.output, new RegExp(`^${row} +(\\d+m )?[\\d.]+ ?m?s$`, 'm'), row);
    }
    await nothingLeft(dir);
    const second = await demo(dir);
    assert.equal(second.code, 0, second.output);
    assert.match(second.output, /Image 'demo' .*: here already/);
    await nothingLeft(dir);
    for (const step of first.steps.filter(s => !s.includes('here already') && !s.startsWith('Building'))) {
      const words = step.replace(/ in \/.*| \(.*/, '').replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
      const cut = await demo(dir, new RegExp(`^==> ${words}`, 'm'));
      assert.equal(cut.code, 130, `${step}: ${cut.output}`);
      await nothingLeft(dir);
    }
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('SIGINT while a kernel, a root file system or an image is made cancels that job', {
  timeout: 300_000,
}, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nxd-'));
  try {
    for (const step of ['Starting a private daemon', 'Downloading a kernel', 'Making a root file system']) {
      const cut = await demo(dir, new RegExp(`^==> ${step}`, 'm'));
      assert.equal(cut.code, 130, `${step}: ${cut.output}`);
      await nothingLeft(dir);
    }
    await rm(dir, { recursive: true });
    await copySeed(await seed(), dir);
    const cut = await demo(dir, /^==> Building image 'demo'/m);
    assert.equal(cut.code, 130, cut.output);
    await nothingLeft(dir);
    assert.equal((await readdir(join(dir, 'images'))).length, 1, 'no half image');
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
