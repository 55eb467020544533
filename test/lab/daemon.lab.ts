/** The whole daemon with real Firecracker: the life of a VM from its first boot to its end, and nothing left of it. */
import assert from 'node:assert/strict';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Vm } from '../../src/api/vm.ts';
import { execResult } from '../../src/client/exec.ts';
import { poll, sleep } from '../../src/lib/deadline.ts';
import { runAny } from '../../src/lib/proc.ts';
import { audit, descriptors } from '../kit/audit.ts';
import { ask } from '../kit/door.ts';
import { copies, serves, watches } from '../kit/inside.ts';
import { confined } from '../kit/proc_facts.ts';
import { openView } from '../kit/view.ts';
import { type World, world } from '../kit/world.ts';

let w: World;

/** One processor and little memory: what is emulated twice is slow. */
const create = (name: string) => w.client.vm.create({ name, vcpus: 1, memory_mib: 256 });
const boot = (vm: string): Promise<Vm> => w.client.vm.start({ vm, timeout_ms: 180_000 });
const sh = async (vm: string, script: string): Promise<string> => {
  const { stdout, stderr, exit_code } = await execResult(w.client.exec.run({ vm, argv: ['/bin/sh', '-c', script] }));
  assert.equal(exit_code, 0, `${stdout}${stderr}`);
  return stdout.toString();
};
/** Runs what takes the guest down; its own end may never be told. */
const goDown = (vm: string, command: string): void => void sh(vm, command).catch(() => {});
const until = (vm: string, what: string, ms: number, test: (vm: Vm) => boolean): Promise<Vm> =>
  poll(`${vm}: ${what}`, ms, async () => {
    const now = await w.client.vm.get({ vm });
    return test(now) ? now : undefined;
  });
const rootOf = (vm: Vm): string => join(w.data_dir, 'workspaces', vm.root_ws_id ?? '', 'disk.raw');
const atRest = async (vm: Vm): Promise<void> => {
  const { code, stdout } = await runAny(['e2fsck', '-fn', rootOf(vm)], { timeout_ms: 120_000 });
  assert.equal(code, 0, stdout);
};
const consoleOf = async (vm: string): Promise<string> => {
  const lines: string[] = [];
  for await (const message of w.client.vm.logs({ vm })) if (message.type === 'line') lines.push(message.line);
  return lines.join('\n');
};
const consoleItems = (vm: string): Promise<string[]> =>
  Array.fromAsync(w.client.vm.logs({ vm, boot: 0 }), m =>
    m.type === 'line' ? m.line : m.type === 'gap' ? m.detail : '',
  );
/** Counts on its output and on the console, until it is enough. */
const COUNT = `i=0; while [ ! -e /run/enough ] && [ $i -lt 3000 ]
do i=$((i+1)); echo line $i; echo line $i > /dev/console; sleep 0.5; done`;
/** From when to when nobody read the console. */
const GAP = /^--- \S+Z to \S+Z: no daemon was there/;
const cgroups = async (): Promise<string[]> => (await readdir('/sys/fs/cgroup', { recursive: true })).sort();

describe('the daemon', { timeout: 600_000 }, () => {
  before(async () => {
    w = await world({ firecracker: 'real', seed: 'booted' });
  });
  after(async () => {
    for (const line of (await w.log()).split('\n')) if (/"level":[456]0/.test(line)) console.error(line);
    await w[Symbol.asyncDispose]();
  });

  test('a VM boots, its data disk keeps what was synced, and it stops with its file system at rest', async t => {
    await create('web');
    const ws = await w.client.ws.create({ name: 'data', size_bytes: 32 * 1024 * 1024 });
    await w.client.ws.attach({ ws: ws.id, vm: 'web' });
    const shown = await w.client.ws.create({ name: 'shown', size_bytes: 16 * 1024 * 1024 });
    await w.client.ws.attach({ ws: shown.id, vm: 'web', mount: '/srv/shown', read_only: true });
    const from = performance.now();
    const vm = await boot('web');
    t.diagnostic(`ready after ${Math.round(performance.now() - from)} ms`);
    assert.deepEqual([vm.state, vm.guest, vm.runs_on, vm.accel], ['running', 'ready', 'firecracker', 'kvm']);
    t.diagnostic(`each confined: ${await confined(vm.pid ?? 0)}`);
    assert.equal(await sh('web', 'hostname; id -u; nproc'), 'web\n0\n1\n');
    assert.equal(await sh('web', 'cat /sys/block/vdb/size'), `${(32 * 1024 * 1024) / 512}\n`);
    assert.deepEqual(vm.guest_facts?.problems, []);
    assert.match(
      await sh('web', 'grep /srv/shown /proc/mounts; cat /sys/block/vdc/ro'),
      /^\/dev\/vdc \/srv\/shown ext4 ro,.*\n1$/m,
    );
    const room = async () => Number(await sh('web', 'df -B1 --output=size / | tail -1'));
    const before = await room();
    const longer = 1024 ** 3 + (await w.client.ws.inspect({ ws: vm.root_ws_id ?? '' })).size_bytes;
    const grown = await w.client.ws.update({ ws: vm.root_ws_id ?? '', size_bytes: longer });
    assert.deepEqual([grown.file_system, grown.notice], ['grown', undefined]);
    assert.ok((await room()) - before > 900 * 1024 ** 2, 'its root is longer');
    assert.equal((await w.client.ws.update({ ws: ws.id, size_bytes: 48 * 1024 * 1024 })).file_system, 'not_mounted');
    assert.equal(await sh('web', 'cat /sys/block/vdb/size'), `${(48 * 1024 * 1024) / 512}\n`);
    await sh(
      'web',
      'echo kept | dd of=/dev/vdb bs=512 conv=sync,fsync status=none; echo kept > /root/kept; sync -f /root',
    );
    await sh('web', 'echo said on the console > /dev/console');
    await poll('the console', 10_000, async () =>
      (await consoleOf('web')).includes('said on the console') ? true : undefined,
    );
    const { text } = await ask(w.socket, { path: '/metrics' });
    const used = (what: string) => Number(new RegExp(`^nexus_vm_${what}{.*name="web".*} (\\S+)$`, 'm').exec(text)?.[1]);
    assert.ok(used('cpu_seconds_total') > 0.1 && used('memory_bytes') > 32 * 1024 ** 2, text);
    assert.ok(used('disk_read_bytes_total') > 1024 ** 2 && used('disk_written_bytes_total') >= 512, text);
    const stopped = await w.client.vm.stop({ vm: 'web' });
    assert.deepEqual([stopped.state, stopped.last_exit?.reason], ['stopped', 'The guest shut down.']);
    await atRest(stopped);
    await using disk = await open(join(w.data_dir, 'workspaces', ws.id, 'disk.raw'));
    assert.equal((await disk.read(Buffer.alloc(5), 0, 5, 0)).buffer.toString(), 'kept\n');
  });

  test('inside: files and a tree by nexusctl cp, a watch, a port', async t => {
    await boot('web');
    assert.equal(await sh('web', 'cat /root/kept'), 'kept\n');
    for (const [name, work] of Object.entries({ copies, watches, serves })) {
      const from = performance.now();
      await work(w, 'web');
      t.diagnostic(`${name}: ${Math.round(performance.now() - from)} ms`);
    }
  });

  test('the daemon is killed: the VM lives on and is adopted, its terminal, its command and its console go on', async t => {
    const { pid } = await w.client.vm.get({ vm: 'web' });
    const boot_id = await sh('web', 'cat /proc/sys/kernel/random/boot_id');
    await using one = await openView(w, { vm: 'web', cols: 100, rows: 30 });
    await one.type('PS1=; stty size; echo be""fore\n');
    await one.see('30 100\r\nbefore\r\n');
    await one.talk.send({ type: 'resize', cols: 132, rows: 43 });
    await one.type('stty size\n');
    await one.see('43 132\r\n');
    const counting = w.client.exec.run({ vm: 'web', argv: ['sh', '-c', COUNT] });
    let [exec, told] = ['', ''];
    for await (const m of counting) {
      if (m.type === 'started') exec = m.exec;
      if (m.type === 'stdout') told += Buffer.from(m.data, 'base64');
      if (told.includes('line 3\n')) break;
    }
    await w.kill();
    await assert.rejects(one.exit);
    await w.start();
    const from = performance.now();
    const adopted = await w.client.vm.wait({ vm: 'web', timeout_ms: 60_000 });
    t.diagnostic(`adopted and ready after ${Math.round(performance.now() - from)} ms`);
    assert.deepEqual([adopted.state, adopted.pid], ['running', pid]);
    assert.equal(await sh('web', 'cat /proc/sys/kernel/random/boot_id'), boot_id);
    await using two = await openView(w, { vm: 'web', cols: 80, rows: 24 });
    assert.deepEqual([two.opened.made, two.opened.exec], [false, one.opened.exec]);
    await two.see('before\r\n');
    await two.type('stty size; exit 3\n');
    await two.see('24 80\r\n');
    assert.equal((await two.exit)?.exit_code, 3);

    await sh('web', 'touch /run/enough');
    for await (const m of w.client.exec.attach({ vm: 'web', exec, stdout: told.length })) {
      assert.notEqual(m.type, 'gap', 'what it said while no daemon was there is kept in the guest');
      if (m.type === 'stdout') told += Buffer.from(m.data, 'base64');
      if (m.type === 'exit') assert.equal(m.exit_code, 0);
    }
    const lines = told.split('\n').slice(0, -1);
    assert.deepEqual(
      lines,
      Array.from(lines, (_, i) => `line ${i + 1}`),
    );
    const seen = await poll('the console', 10_000, async () => {
      const items = await consoleItems('web');
      return items.includes(`line ${lines.length}`) ? items : undefined;
    });
    const gap = seen.findLastIndex(line => GAP.test(line));
    const numbers = (some: string[]) => some.flatMap(line => /^line (\d+)$/.exec(line)?.[1] ?? []).map(Number);
    const [before, after] = [numbers(seen.slice(0, gap)), numbers(seen.slice(gap))];
    const lost = (after[0] ?? 0) - (before.at(-1) ?? 0) - 1;
    t.diagnostic(`console: ${before.length} lines before the gap, ${after.length} after it, ${lost} in it`);
    assert.ok(gap > 0 && lost >= 0, seen.join('\n'));
    for (const part of [before, after])
      assert.deepEqual(
        part,
        Array.from(part, (_, i) => (part[0] ?? 0) + i),
      );
    assert.deepEqual([before[0], after.at(-1)], [1, lines.length]);
    assert.ok(after.length > 1, 'what the guest wrote while no daemon was there is in the log');
  });

  test('a VM is paused in the middle of a transfer, and goes on', async () => {
    let bytes = 0;
    const reading = (async () => {
      const lines = { vm: 'web', argv: ['seq', '-w', '1', '150000'] };
      for await (const m of w.client.exec.run(lines)) {
        if (m.type === 'stdout') bytes += Buffer.from(m.data, 'base64').length;
        if (m.type === 'gap') assert.fail('bytes were lost');
        if (m.type === 'exit') return m.exit_code;
      }
      return null;
    })();
    await poll('the first bytes', 60_000, () => (bytes > 50_000 ? true : undefined));
    const paused = await w.client.vm.pause({ vm: 'web' });
    assert.equal(paused.state, 'paused');
    await sleep(1000);
    const before = bytes;
    await sleep(1000);
    assert.equal(bytes, before, 'bytes came from a paused VM');
    assert.ok(before < 1_050_000, 'the transfer was over before the pause: this shows nothing');
    await w.client.vm.resume({ vm: 'web' });
    assert.deepEqual([await reading, bytes], [0, 1_050_000]);
    // its exit status cannot be had by this daemon; that it was the guest's own end can be
    const stopped = await w.client.vm.stop({ vm: 'web' });
    assert.deepEqual([stopped.state, stopped.last_exit?.reason], ['stopped', 'The guest shut down.']);
    await atRest(stopped);
  });

  test('a guest that reboots is started again; one that powers off is stopped, and at rest', async () => {
    const first = await boot('web');
    goDown('web', 'reboot');
    const again = await until('web', 'its second boot', 180_000, now => now.pid !== first.pid && now.guest === 'ready');
    assert.notEqual(again.guest_facts?.boot_id, first.guest_facts?.boot_id);
    assert.equal(again.last_exit?.reason, 'The guest rebooted itself.');
    goDown('web', 'poweroff');
    const vm = await until('web', 'its end', 60_000, now => now.state !== 'running');
    assert.deepEqual([vm.state, vm.last_exit?.reason], ['stopped', 'The guest powered off itself.']);
    await atRest(vm);
  });

  test('a kernel that panics is a crash, with its words as evidence', async () => {
    await boot('web');
    goDown('web', 'echo c > /proc/sysrq-trigger');
    const vm = await until('web', 'its end', 60_000, now => now.state !== 'running');
    assert.equal(vm.state, 'crashed');
    assert.match(vm.last_exit?.reason ?? '', /kernel panicked: .*sysrq triggered crash/);
  });

  test('a VMM that is killed is a crash, on record within a second, whatever the signal, and its policy starts it again', async t => {
    const took: number[] = [];
    for (const signal of ['SIGKILL', 'SIGTERM', 'SIGSEGV', 'SIGABRT', 'SIGBUS'] as const) {
      const { pid } = await w.client.vm.start({ vm: 'web', wait: 'running' });
      const from = Date.now();
      process.kill(pid ?? 0, signal);
      const vm = await until('web', 'its crash', 10_000, now => now.state !== 'running');
      const { exit_code, signal: by, reason } = vm.last_exit ?? {};
      const [last] = await w.client.vm.history({ vm: 'web' });
      const ms = (last?.at_ms ?? 0) - from;
      t.diagnostic(`${signal}: ${reason} (${exit_code ?? by}), on record after ${ms} ms`);
      assert.equal(last?.to, 'crashed');
      took.push(ms);
      assert.equal(vm.state, 'crashed');
      assert.ok(by === signal || (exit_code ?? 0) > 0, JSON.stringify(vm.last_exit));
    }
    // of five the middle one: what is emulated twice may stand still for a moment
    assert.ok((took.toSorted((a, b) => a - b)[2] ?? 0) < 1000, `on record after ${took.join(', ')} ms`);
    await w.client.vm.update({ vm: 'web', restart: 'on-crash' });
    const { pid } = await w.client.vm.start({ vm: 'web', wait: 'running' });
    process.kill(pid ?? 0, 'SIGKILL');
    await until('web', 'its start', 60_000, now => now.state === 'running' && now.pid !== pid);
    await w.client.vm.update({ vm: 'web', restart: 'never' });
    await w.client.vm.stop({ vm: 'web', force: true });
  });

  test('twenty starts and stops leave nothing', async () => {
    const groups = await cgroups();
    let least = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 20; i++) {
      await w.client.vm.start({ vm: 'web', wait: i % 10 === 9 ? 'ready' : 'running', timeout_ms: 180_000 });
      await w.client.vm.stop({ vm: 'web', force: i % 10 !== 9 });
      assert.deepEqual(await w.vmms(), []);
      if (i < 5) least = Math.min(least, await descriptors(w));
    }
    await poll('the descriptors of the beginning', 10_000, async () =>
      (await descriptors(w)) <= least ? true : undefined,
    );
    await w.client.vm.delete({ vm: 'web' });
    for (const ws of ['data', 'shown']) await w.client.ws.remove({ ws });
    assert.deepEqual(await audit(w), []);
    assert.deepEqual(await cgroups(), groups);
    assert.ok(!(await w.log()).includes('"level":50'), await w.log());
  });
});
