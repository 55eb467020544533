/** What the life of a VM must bear, with a real guest on whatever VMM: functions of a world and a VM in it that runs and is ready. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import type { Vm } from '../../src/api/vm.ts';
import type { VmState } from '../../src/api/vm_state.ts';
import { execResult } from '../../src/client/exec.ts';
import { poll, sleep } from '../../src/lib/deadline.ts';
import { runAny } from '../../src/lib/proc.ts';
import { rejects, until } from './behave.ts';
import type { World } from './world.ts';

const MIB = 1024 * 1024;

export const sh = (w: World, vm: string, script: string) =>
  execResult(w.client.exec.run({ vm, argv: ['/bin/sh', '-c', script] }));

const text = async (w: World, vm: string, script: string) => (await sh(w, vm, script)).stdout.toString().trim();

/** A command that takes the guest down: its own end may not be seen. */
export const type = async (w: World, vm: string, script: string): Promise<void> => {
  await sh(w, vm, script).catch(() => {});
};

/** The file system of the VM's root is at rest. */
export const isClean = async (w: World, vm: Vm): Promise<void> => {
  const root = join(w.data_dir, 'workspaces', vm.root_ws_id ?? '', 'disk.raw');
  const fsck = await runAny(['e2fsck', '-fn', root]);
  assert.equal(fsck.code, 0, fsck.stdout);
};

/** So many bytes of a pattern, at most so many a second. */
const slowly = async function* (bytes: number, rate: number): AsyncGenerator<Buffer> {
  const piece = Buffer.alloc(65_536, 'a line of this length\n');
  for (let left = bytes; left > 0; left -= piece.length) {
    yield piece.subarray(0, Math.min(left, piece.length));
    await sleep((piece.length / rate) * 1000);
  }
};

const hashOf = (bytes: number): string => {
  const hash = createHash('sha256');
  const piece = Buffer.alloc(65_536, 'a line of this length\n');
  for (let left = bytes; left > 0; left -= piece.length) hash.update(piece.subarray(0, Math.min(left, piece.length)));
  return hash.digest('hex');
};

/** Paused in the middle of a download and an upload: both stand still and then go on, and no byte is lost; the clock is right afterwards. */
export const pauseInTransfer = async (w: World, vm: string): Promise<void> => {
  const lines = 500_000;
  const expected = createHash('sha256');
  for (let n = 1; n <= lines; n++) expected.update(`${n}\n`);
  const hash = createHash('sha256');
  let got = 0;
  const down = (async () => {
    // slow enough that a pause comes in the middle
    const script = `i=0; while [ $i -lt 10 ]; do seq $((i*${lines / 10}+1)) $(((i+1)*${lines / 10})); sleep 0.3; i=$((i+1)); done`;
    for await (const message of w.client.exec.run({ vm, argv: ['/bin/sh', '-c', script] })) {
      assert.notEqual(message.type, 'gap');
      if (message.type === 'stdout') {
        const bytes = Buffer.from(message.data, 'base64');
        hash.update(bytes);
        got += bytes.length;
      }
      if (message.type === 'exit') return message.exit_code;
    }
    return undefined;
  })();
  const size = 8 * MIB;
  const reading = w.client.exec.run({ vm, argv: ['sha256sum'], stdin: 'open' });
  const first = await reading.next();
  assert.ok(first.value?.type === 'started');
  const up = w.client.exec.stdin({ vm, exec: first.value.exec }, { body: Readable.from(slowly(size, 2 * MIB)) });
  up.catch(() => {}); // awaited below
  await poll('the transfers', 60_000, () => got > 100_000 || undefined);
  // much more than a pause may take
  assert.match(await text(w, vm, 'date -u -s @86400000 +%Y'), /^1972$/);
  const { pid } = await w.client.vm.pause({ vm });
  await sleep(500); // what is under way arrives
  const before = got;
  await rejects(w.client.exec.run({ vm, argv: ['true'] }).next(), 'bad_state', /it is paused/);
  await sleep(2500);
  assert.equal(got, before, 'nothing comes out of a guest that stands still');
  const resumed = await w.client.vm.resume({ vm });
  assert.deepEqual([resumed.state, resumed.pid], ['running', pid]);
  await poll("the guest's clock to be right", 20_000, async () => {
    const date = Number(await text(w, vm, 'date +%s'));
    return Math.abs(date - Date.now() / 1000) < 2 || undefined;
  });
  assert.equal(await down, 0);
  assert.equal(hash.digest('hex'), expected.digest('hex'));
  assert.deepEqual(await up, { bytes: size });
  assert.equal((await execResult(reading)).stdout.toString().split(' ')[0], hashOf(size));
};

/** Paused, the daemon killed: paused under the next one, and the command that ran in the guest is still there when it is resumed. */
export const pauseOverDaemon = async (w: World, vm: string): Promise<void> => {
  await sh(w, vm, 'nohup sleep 1000 >/dev/null 2>&1 & echo $! > /run/sleeper');
  const { pid } = await w.client.vm.pause({ vm });
  await w.kill();
  await w.start();
  const found = await w.client.vm.get({ vm });
  assert.deepEqual([found.state, found.pid], ['paused', pid]);
  await w.client.vm.resume({ vm });
  await w.client.vm.wait({ vm });
  assert.equal(await text(w, vm, 'kill -0 $(cat /run/sleeper) && echo alive'), 'alive');
  await w.client.vm.pause({ vm });
  const stopped = await w.client.vm.stop({ vm });
  assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
  await isClean(w, stopped);
  await w.client.vm.start({ vm });
};

/** The VM runs again in another process. */
export const comesBack = (w: World, vm: string, pid: number | null, ms = 120_000): Promise<Vm> =>
  poll(`${vm} to run again`, ms, async () => {
    const now = await w.client.vm.get({ vm });
    return now.state === 'running' && now.pid !== pid && now.guest === 'ready' ? now : undefined;
  });

/** Waits for a state that is in the history, though it may have passed: the newest entry of it. */
const cameTo = async (w: World, vm: string, state: VmState, since_ms: number, ms: number) =>
  poll(`${vm} to have been ${state}`, ms, async () =>
    (await w.client.vm.history({ vm })).find(h => h.to === state && h.at_ms >= since_ms),
  );

/** The guest powers itself off by that command, in good order or not. The VM is started again afterwards. */
export const powersOff = async (
  w: World,
  vm: string,
  command: string,
  { ms = 60_000, clean = true } = {},
): Promise<void> => {
  await type(w, vm, `echo data > /root/kept; sync; ${command}; sleep 60`);
  const stopped = await until(w, vm, 'stopped', ms);
  assert.match(stopped.last_exit?.reason ?? '', /^The guest (powered off|halted) itself\.$/, await w.log());
  const entry = (await w.client.vm.history({ vm, limit: 1 }))[0];
  assert.deepEqual([entry?.to, entry?.actor], ['stopped', 'guest']);
  assert.equal(stopped.restart_at_ms, null);
  if (clean) await isClean(w, stopped);
  await w.client.vm.start({ vm });
  assert.equal(await text(w, vm, 'cat /root/kept'), 'data');
};

/** The guest reboots itself by that command. `clean`: in good order. */
export const reboots = async (w: World, vm: string, command: string, ms = 60_000): Promise<void> => {
  const { pid, guest_facts } = await w.client.vm.get({ vm });
  const since = Date.now();
  await type(w, vm, `${command}; sleep 60`);
  const entry = await cameTo(w, vm, 'stopped', since, ms);
  assert.deepEqual([entry.why, entry.actor], ['The guest rebooted itself.', 'guest']);
  const back = await comesBack(w, vm, pid);
  assert.notEqual(back.guest_facts?.boot_id, guest_facts?.boot_id);
};

/** The guest's kernel panics: crashed, with the line that says why; started again where the policy wants it. */
/** A command that takes all memory is killed, and told so; neither another command nor the agent is. As PID 1 that cannot be killed at all. */
export const starves = async (w: World, vm: string): Promise<void> => {
  const { boot_id } = (await w.client.vm.get({ vm })).guest_facts ?? {};
  const other = sh(w, vm, 'for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done');
  const eater = await execResult(w.client.exec.run({ vm, argv: ['tail', '/dev/zero'] }));
  assert.deepEqual([eater.exit_code, eater.signal, eater.timed_out], [null, 'KILL', false]);
  assert.equal((await other).exit_code, 0);
  await sh(w, vm, 'kill -KILL 1');
  assert.equal(await text(w, vm, 'cat /proc/1/comm'), 'nexus-agent');
  const after = await w.client.vm.get({ vm });
  assert.deepEqual([after.state, after.guest, after.guest_facts?.boot_id], ['running', 'ready', boot_id]);
};

/** In the middle of its output a command loses its VM: what came is there, and the fault says what became of the VM, soon. */
const losesIts = async (w: World, vm: string, end: () => Promise<unknown>, why: RegExp): Promise<void> => {
  const stream = w.client.exec.run({ vm, argv: ['/bin/sh', '-c', 'while :; do echo line; sleep 0.05; done'] });
  let got = '';
  const reading = (async () => {
    for await (const message of stream) if (message.type === 'stdout') got += Buffer.from(message.data, 'base64');
  })();
  reading.catch(() => {}); // awaited below
  await poll('output', 30_000, () => got.length > 20 || undefined);
  const ending = end();
  await rejects(reading, 'guest', why);
  assert.match(got, /^(?:line\n)+$/);
  await ending;
};

/** A VM that is stopped by force, and one whose guest ends what runs, in the middle of output. */
export const stopsInOutput = async (w: World, vm: string): Promise<void> => {
  const stop = () => w.client.vm.stop({ vm, force: true });
  await losesIts(w, vm, stop, /^The end of command exec_\w+ is not known: VM '\w+' has ended: /);
  await w.client.vm.start({ vm, timeout_ms: 180_000 });
  const stream = w.client.exec.run({ vm, argv: ['/bin/sh', '-c', 'while :; do echo line; sleep 0.05; done'] });
  const result = execResult(stream);
  await sleep(1000);
  await w.client.vm.stop({ vm });
  assert.equal((await result).signal, 'TERM', 'its own end reached us');
  await w.client.vm.start({ vm, timeout_ms: 180_000 });
};

export const panics = async (w: World, vm: string): Promise<void> => {
  await w.client.vm.update({ vm, restart: 'on-crash' });
  const { pid } = await w.client.vm.get({ vm });
  const since = Date.now();
  const panic = () => type(w, vm, 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60');
  await losesIts(
    w,
    vm,
    panic,
    /^The end of command exec_\w+ is not known: VM '\w+' has (?:crashed|ended): The guest's kernel panicked: /,
  );
  const entry = await cameTo(w, vm, 'crashed', since, 60_000);
  assert.match(entry.why, /^The guest's kernel panicked: .*Kernel panic - not syncing: sysrq triggered crash/);
  const back = await comesBack(w, vm, pid);
  assert.ok(back.last_exit?.console_tail.some(line => line.includes('Kernel panic - not syncing')));
  await w.client.vm.update({ vm, restart: 'never' });
};
