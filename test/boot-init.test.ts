/** Images that an ordinary user built, really booted with each init that they have, and with the agent in its place. */
import assert from 'node:assert/strict';
import { mkdtemp, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { InitMode } from '../src/api/image.ts';
import { makeExt4 } from '../src/disk/format.ts';
import { poll, raced, withDeadline } from '../src/lib/deadline.ts';
import { runAny } from '../src/lib/proc.ts';
import { agentBinaries } from './kit/agent.ts';
import { testRootfs } from './kit/assets.ts';
import { bench } from './kit/build.ts';
import { busyboxRootfs, noBusybox, openrcRootfs } from './kit/busybox.ts';
import { isClean, powersOff, reboots } from './kit/life.ts';
import { type BareMachine, bareMachine } from './kit/machine.ts';
import { addImage } from './kit/own_image.ts';
import { isKilled, isReplaced, isStarved, sh } from './kit/service.ts';
import { start } from './kit/stress.ts';
import { world } from './kit/world.ts';

const temp = async () => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-init-'));
  return { dir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};

const { guestAsUser } = await bench();

const ENVIRONMENT = { NEXUS_TEST: `two words, "$HOME" and \\ and 50%h` };

/** An image of that archive, with whatever init it has or with that one, built by an ordinary user. */
const build = async (tar: string, dir: string, init?: InitMode): Promise<{ image: string; init: InitMode }> => {
  const { agent_x86_64: agent } = await agentBinaries();
  const image = join(dir, `${init ?? 'own'}.raw`);
  const label = { template: 'x', template_version: 2, rootfs: null, rootfs_sha256: null, agent_version: '9' };
  const guest = { name: 'x', agent, label, environment: ENVIRONMENT, size_bytes: 1024 ** 3, ...(init && { init }) };
  const made = await guestAsUser(tar, guest);
  await rename(made.out, image);
  return { image, init: init ?? made.facts.init };
};

/** The guest is a machine as any other. */
const check = async (m: BareMachine): Promise<void> => {
  const said = await sh(m, 'id -u; hostname; echo oops >&2; exit 7');
  assert.deepEqual([said.stdout, said.stderr, said.exit_code], ['0\nbare\n', 'oops\n', 7]);
  assert.equal((await sh(m, 'kill -SEGV $$')).signal, 'SEGV');
  await sh(m, 'for i in 1 2 3 4 5; do (true & exec true) & done; sleep 1');
  // one that has just died is a zombie for a moment
  const count = 'cat /proc/[0-9]*/status 2>/dev/null | grep "^State:.Z" | wc -l';
  await poll('the end of all zombies', 10_000, async () => (await sh(m, count)).stdout.trim() === '0' || undefined);
  await sh(m, 'echo data > /root/kept');
};

/** What every image has whatever its init: the defaults, and what the initramfs does for all. */
const furnished = async (m: BareMachine, init: InitMode): Promise<void> => {
  const label = (await sh(m, 'cat /etc/nexus/image.yaml')).stdout;
  assert.match(label, /^image: "img_1"\nimage_name: "tools"\nbuild: null\ntemplate: "x"\ntemplate_version: 2\nos: /);
  assert.match(label, new RegExp(`^init: "${init}"$`, 'm'));
  assert.equal((await sh(m, 'echo "$NEXUS_TEST"')).stdout, `${ENVIRONMENT.NEXUS_TEST}\n`);
  const login = await start(m.guest, ['/bin/sh', '-l', '-c', 'echo "$NEXUS_TEST"'], { env: { NEXUS_TEST: '' } });
  let said = '';
  for await (const piece of login) if ('data' in piece) said += piece.data.toString();
  assert.equal(said, `${ENVIRONMENT.NEXUS_TEST}\n`, 'a login shell');
  const { stdout } = await sh(m, 'cat /sys/class/net/lo/flags /proc/mounts /etc/resolv.conf');
  assert.match(stdout, /^0x9$/m, 'lo is up'); // UP, LOOPBACK
  assert.match(stdout, /^\/dev\/vdb \/srv\/data ext4 rw,/m, 'a data disk');
  await sh(m, 'echo data > /srv/data/kept');
  for (const mount of ['proc /proc', 'sysfs /sys', 'devpts /dev/pts', 'tmpfs /dev/shm', 'tmpfs /run'])
    assert.match(stdout, new RegExp(`^\\S+ ${mount.split(' ')[1]} ${mount.split(' ')[0]} `, 'm'), mount);
  assert.match(stdout, /^nameserver /m);
};

/** The environment of a process of the guest. */
const environOf = async (m: BareMachine, pid: string): Promise<string> =>
  (await sh(m, `tr '\\0' '\\n' < /proc/${pid}/environ`)).stdout;

/** Waits for the end of the VMM; the file system must be at rest. */
const ended = async (m: BareMachine, ms: number): Promise<number> => {
  const from = performance.now();
  const end = await withDeadline('the end of the machine', ms, m.machine.ended).catch(async error => {
    throw new Error(`${error}\n${(await m.console.tail(40)).join('\n')}`);
  });
  const took = Math.round(performance.now() - from);
  assert.deepEqual([end.exit_code, end.guest_reset, end.guest_panicked], [0, true, false]);
  for (const disk of [m.disk, ...m.disks]) {
    const fsck = await runAny(['e2fsck', '-fn', disk]);
    assert.equal(fsck.code, 0, `${fsck.stdout}\n${(await m.console.tail(40)).join('\n')}`);
  }
  return took;
};

/** Types a command that takes the machine down. */
const type = async (m: BareMachine, argv: string[]): Promise<void> => {
  const signal = AbortSignal.timeout(60_000);
  const stream = await start(m.guest, argv, {}, undefined, signal);
  const over = AbortSignal.any([signal, AbortSignal.timeout(10_000)]); // a machine that stands still ends nothing
  await raced(Promise.race([m.machine.ended, stream.result]), over).catch(() => {});
};

/** A machine of that image, under the name that its label will have; beside other tests an init of emulated code takes minutes. */
const boot = async (image: string, init?: 'agent'): Promise<BareMachine> => {
  const data = `${image}.data`;
  await writeFile(data, '');
  await truncate(data, 32 * 1024 * 1024);
  await makeExt4(data, 'data', AbortSignal.timeout(60_000));
  return bareMachine({
    image,
    ...(init && { init }),
    disks: [data],
    cmdline: ['nexus.image=img_1', 'nexus.image_name=tools', 'nexus.mount=vdb:/srv/data'],
    ring_ms: 300_000,
  });
};

/** The agent is the first process of that archive. */
const bootsWithAgent = async (t: TestContext, tar: string, dir: string): Promise<void> => {
  const { image } = await build(tar, dir, 'agent');
  const from = performance.now();
  await using m = await boot(image, 'agent');
  t.diagnostic(`ready after ${Math.round(performance.now() - from)} ms`);
  assert.equal(m.guest.facts?.init, 'agent');
  await check(m);
  await furnished(m, 'agent');
  assert.match((await sh(m, 'tr "\\0" " " < /proc/1/cmdline')).stdout, /nexus-agent/);
  await m.guest.power('poweroff', 3000, AbortSignal.timeout(10_000));
  t.diagnostic(`down after ${await ended(m, 60_000)} ms`);
};

test("the agent serves beside BusyBox's init", { timeout: 1_200_000 }, async t => {
  const why = await noBusybox();
  if (why !== undefined) return t.skip(why);
  await using work = await temp();
  const tar = join(work.dir, 'root.tar');
  await writeFile(tar, await busyboxRootfs());
  await t.test('the agent is init in its place', t => bootsWithAgent(t, tar, work.dir));
  const { image, init } = await build(tar, work.dir);
  assert.equal(init, 'busybox');

  await t.test('commands run, and the host powers it off', async t => {
    const from = performance.now();
    await using m = await boot(image);
    t.diagnostic(`ready after ${Math.round(performance.now() - from)} ms`);
    assert.equal(m.guest.facts?.init, 'busybox');
    await check(m);
    await furnished(m, 'busybox');
    assert.match((await sh(m, 'ps')).stdout, /^ +1 (root|0) .*init$/m);
    assert.ok((await environOf(m, '1')).includes(`NEXUS_TEST=${ENVIRONMENT.NEXUS_TEST}`));
    await poll(
      'a login on the serial console',
      10_000,
      async () => /login:/.test((await m.console.tail(5)).join()) || undefined,
    );
    const bells = m.bells();
    await sh(m, 'kill -KILL $(pidof nexus-agent)').catch(() => {});
    await poll('the agent again', 60_000, async () => m.bells() > bells || undefined);
    assert.equal((await sh(m, 'echo back')).stdout, 'back\n');
    await m.guest.power('poweroff', 3000, AbortSignal.timeout(10_000));
    t.diagnostic(`down after ${await ended(m, 30_000)} ms`);
    assert.deepEqual(m.endings, ['poweroff by host']);
  });
  await t.test('reboot in the guest', async () => {
    await using m = await boot(image);
    await type(m, ['reboot']);
    await ended(m, 30_000);
    assert.deepEqual(m.endings, ['down by guest'], "BusyBox's init does not say which");
  });
  await t.test('poweroff in the guest: the kernel says so, and the file system is at rest', async () => {
    await using m = await boot(image);
    await type(m, ['poweroff']);
    await poll('the last line of the kernel', 30_000, async () => {
      const lines = await m.console.tail(5);
      return lines.some(line => /reboot: (Power down|System halted)/.test(line)) || undefined;
    });
    assert.deepEqual(m.endings, ['down by guest']);
    await m.machine.signal('SIGKILL'); // without ACPI it stands still
    await m.machine.ended;
    const fsck = await runAny(['e2fsck', '-fn', m.disk]);
    assert.equal(fsck.code, 0, fsck.stdout);
  });
  await t.test('through the daemon: a power-off stays off, a reboot comes back', async () => {
    await using w = await world({ qemu: 'real', seed: 'booted' });
    await addImage(w, image, 'busybox', init);
    await w.client.vm.create({ name: 'box', image: 'busybox', memory_mib: 512 });
    await w.client.vm.start({ vm: 'box' });
    await powersOff(w, 'box', 'poweroff');
    await reboots(w, 'box', 'reboot');
    const stopped = await w.client.vm.stop({ vm: 'box' });
    assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
    await isClean(w, stopped);
  });
});

test('the agent is a service of OpenRC', { timeout: 1_200_000 }, async t => {
  const why = await noBusybox();
  if (why !== undefined) return t.skip(why);
  await using work = await temp();
  const tar = join(work.dir, 'root.tar');
  await writeFile(tar, await openrcRootfs());
  const { image, init } = await build(tar, work.dir);
  assert.equal(init, 'openrc');
  const from = performance.now();
  await using m = await boot(image);
  t.diagnostic(`ready after ${Math.round(performance.now() - from)} ms`);
  assert.equal(m.guest.facts?.init, 'openrc');
  await check(m);
  await furnished(m, 'openrc');
  assert.match((await sh(m, 'rc-service nexus-agent status')).stdout, /status: started/);
  assert.match(await environOf(m, '$(pidof nexus-agent)'), /^NEXUS_TEST=two words/m);
  const bells = m.bells();
  await sh(m, 'kill -KILL $(pidof nexus-agent)').catch(() => {});
  await poll('the agent again', 60_000, async () => m.bells() > bells || undefined);
  await m.guest.power('poweroff', 3000, AbortSignal.timeout(30_000));
  t.diagnostic(`down after ${await ended(m, 120_000)} ms`);
  assert.deepEqual(m.endings, ['poweroff by host']);
});

test('the agent is a unit of systemd', { timeout: 1_200_000 }, async t => {
  const { tar } = await testRootfs(['systemd-sysv', 'udev']);
  await using work = await temp();
  await t.test('the agent is init in its place', t => bootsWithAgent(t, tar, work.dir));
  const { image, init } = await build(tar, work.dir);
  assert.equal(init, 'systemd');

  await t.test('commands run, and the host powers it off', async t => {
    const from = performance.now();
    await using m = await boot(image);
    t.diagnostic(`ready after ${Math.round(performance.now() - from)} ms`);
    assert.equal(m.guest.facts?.init, 'systemd');
    await check(m);
    await furnished(m, 'systemd');
    assert.equal((await sh(m, 'ps -o comm= -p 1')).stdout, 'systemd\n');
    const up = await poll('the end of the boot', 60_000, async () => {
      const { stdout } = await sh(m, 'systemctl is-system-running');
      return /starting|initializing/.test(stdout) ? undefined : stdout.trim();
    });
    t.diagnostic(`up after ${Math.round(performance.now() - from)} ms`);
    assert.deepEqual([up, (await sh(m, 'systemctl --failed --no-legend --plain')).stdout], ['running', '']);
    assert.equal((await sh(m, 'systemctl show -P ActiveState nexus-agent')).stdout, 'active\n');
    // active only once udev has seen the line, which emulated takes longer than systemd waits
    assert.match((await sh(m, 'systemctl show -P Wants getty.target')).stdout, /serial-getty@ttyS0\.service/);
    // its services have it, the agent's among them
    assert.ok(
      (await environOf(m, '$(systemctl show -P MainPID nexus-agent)')).includes(`NEXUS_TEST=${ENVIRONMENT.NEXUS_TEST}`),
    );
    await isReplaced(m, t, work.dir);
    await isStarved(m);
    await isKilled(m);
    await m.guest.power('poweroff', 3000, AbortSignal.timeout(10_000));
    t.diagnostic(`down after ${await ended(m, 60_000)} ms`);
    assert.deepEqual(m.endings, ['poweroff by host']);
  });
  for (const [argv, ending] of [
    [['systemctl', 'reboot'], 'reboot by guest'],
    [['systemctl', 'poweroff', '--force'], 'poweroff by guest'],
  ] as const) {
    await t.test(`${argv.join(' ')} in the guest`, async t => {
      await using m = await boot(image);
      await type(m, [...argv]);
      t.diagnostic(`down after ${await ended(m, 60_000)} ms`);
      assert.deepEqual(m.endings, [ending]);
    });
  }
});
