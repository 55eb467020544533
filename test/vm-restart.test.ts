/** Ends that nobody asked for, ends that the guest brings about, and what follows them; on both stand-ins. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import process from 'node:process';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, test } from 'node:test';
import type { Vm } from '../src/api/vm.ts';
import { lastWord } from '../src/core/verdict.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { endKeepers, kept, killVmm, noVmm, rejects, type Stage, stage, until } from './kit/behave.ts';
import type { World } from './kit/world.ts';

/** Quick, and told apart: the first delay, the ceiling, and when an end comes late enough. */
const [LEAST, MOST] = [150, 600];
const TIMES = { NEXUS_RESTART_MS: `${LEAST}:${MOST}:60000` };

test("a kernel's last word: nothing but its own complaints may follow it", () => {
  const cases: readonly [string | undefined, ...string[]][] = [
    ['poweroff', 'reboot: Power down'],
    ['reboot', '[    2.7] I/O error', '[    2.8] reboot: Restarting system', ''],
    ['halt', '[   12.3] reboot: System halted', '[   12.3] I/O error, dev vda', '', '[  140.1] EXT4-fs error'],
    ['poweroff', '[   12.3][    T1] reboot: Power down', '[   12.4][   C0] I/O error, dev vda'],
    [undefined, '[   12.3] reboot: Power down', 'login:'],
    [undefined, 'reboot: Power down', '[   12.3] I/O error, dev vda'],
    [undefined, '[   12.3] reboot: Power down', '[    0.3] another kernel', '[   14.0] that lives'],
    [undefined, '[   12.3] they say reboot: Power down'],
    [undefined],
  ];
  for (const [word, ...lines] of cases) assert.equal(lastWord(lines), word, lines.join('|'));
});

for (const vmm of ['qemu', 'firecracker'] as const) {
  describe(`on ${vmm}`, () => {
    let s: Stage;
    let w: World;
    before(async () => {
      s = await stage(vmm, { env: TIMES });
      w = s.w;
    });
    after(async () => {
      await s[Symbol.asyncDispose]();
    });

    const create = (name: string, more: Partial<Pick<Vm, 'restart' | 'auto_start' | 'start_order'>> = {}) =>
      w.client.vm.create({ name, memory_mib: 128, ...more });
    /** The agent says that the guest goes down, as if somebody in it had asked for that. */
    const goesDown = (vm: string, kind: 'poweroff' | 'reboot' | 'down') =>
      s.sh(vm, `kill -${{ poweroff: 'USR1', reboot: 'USR2', down: 'HUP' }[kind]} $PPID`).catch(() => {});
    const history = async (vm: string) => (await w.client.vm.history({ vm })).reverse();
    const ways = (vm: string) => s.ways(vm);
    const readyAfter = (vm: string, pid: number | null, ms = 10_000) =>
      poll(`${vm} to run again`, ms, async () => {
        const now = await w.client.vm.get({ vm });
        return now.state === 'running' && now.pid !== pid && now.guest === 'ready' ? now : undefined;
      });
    const clear = () => s.clear();

    test('a guest that powers off is stopped, and says who did it; with `always` it comes back', async () => {
      const { id } = await create('off', { restart: 'on-crash' });
      const { pid } = await w.client.vm.start({ vm: id });
      await goesDown(id, 'poweroff');
      const vm = await until(w, id, 'stopped');
      assert.deepEqual([vm.last_exit?.reason, vm.restart_at_ms], ['The guest powered off itself.', null]);
      assert.equal((await history(id)).at(-1)?.actor, 'guest');
      await sleep(3 * LEAST);
      assert.equal((await w.client.vm.get({ vm: id })).state, 'stopped');
      await w.client.vm.update({ vm: id, restart: 'always' });
      const again = await w.client.vm.start({ vm: id });
      assert.notEqual(again.pid, pid);
      await goesDown(id, 'poweroff');
      const back = await readyAfter(id, again.pid);
      assert.deepEqual([back.restart_count, back.restart_at_ms], [1, null]);
      await w.client.vm.stop({ vm: id });
      await sleep(3 * LEAST);
      assert.equal((await w.client.vm.get({ vm: id })).state, 'stopped', 'never after a stop');
      await clear();
    });

    test('a guest that reboots is started again, whatever its policy, and backs off when it does nothing else', async () => {
      const { id } = await create('again');
      const { pid } = await w.client.vm.start({ vm: id });
      await goesDown(id, 'reboot');
      const back = await readyAfter(id, pid);
      const said = (await history(id)).slice(3).map(h => [h.to, h.why, h.actor]);
      assert.deepEqual(said.slice(0, 2), [
        ['stopped', 'The guest rebooted itself.', 'guest'],
        ['starting', 'automatic restart', 'daemon'],
      ]);
      const [ended, started] = (await history(id)).slice(3);
      assert.ok(started && ended && started.at_ms - ended.at_ms < 1000, 'the first reboot waits for nothing');
      await goesDown(id, 'reboot');
      const third = await readyAfter(id, back.pid);
      assert.equal(third.restart_count, 2);
      const late = (await history(id)).slice(-3);
      assert.ok((late[1]?.at_ms ?? 0) - (late[0]?.at_ms ?? 0) >= LEAST / 2, JSON.stringify(late));
      await clear();
    });

    test('a reboot without a word to us is one by the last line of its kernel; without that it is a crash', async () => {
      const { id } = await create('mute');
      await s.behave({ RESET_MS: 400 });
      await w.client.vm.start({ vm: id, wait: 'running' });
      await until(w, id, 'stopped');
      await poll('the second start', 5000, async () => (await ways(id)).length >= 6 || undefined);
      assert.equal((await history(id))[3]?.why, 'The guest rebooted itself.');
      await s.behave({ RESET_MS: 400, LAST: '' });
      const vm = await until(w, id, 'crashed');
      assert.equal(vm.last_exit?.reason, 'The guest reset its machine without a word.');
      assert.equal(vm.restart_at_ms, null);
      await clear();
    });

    test('a guest that went down and stands still is ended; one that only says so lives on', {
      timeout: 60_000,
    }, async () => {
      const { id } = await create('halts');
      await s.behave({
        HALT: 1,
        LAST: '[   12.345678] reboot: Power down\r\n[   12.345700] I/O error, dev vda, sector 69616',
      });
      await w.client.vm.start({ vm: id });
      await goesDown(id, 'down');
      const vm = await until(w, id, 'stopped', 20_000);
      assert.deepEqual([vm.last_exit?.reason, vm.restart_at_ms], ['The guest powered off itself.', null]);
      assert.equal((await history(id)).at(-1)?.actor, 'guest');
      await noVmm(w);
      await s.behave({ CONSOLE: 'reboot: Power down\r\n' });
      const { pid } = await w.client.vm.start({ vm: id });
      await sleep(4000);
      const lives = await w.client.vm.get({ vm: id });
      assert.deepEqual([lives.state, lives.guest, lives.pid], ['running', 'ready', pid]);
      await clear();
    });

    test('a crash: started again ever more slowly, up to a ceiling; stop, start and delete end the waiting', async () => {
      const { id } = await create('crashes', { restart: 'on-crash' });
      const { pid: first } = await w.client.vm.start({ vm: id });
      let pid = first;
      const delays: number[] = [];
      for (let n = 1; n <= 4; n++) {
        assert.ok(await killVmm(w, id));
        const at = performance.now();
        const waits = await until(w, id, 'crashed', 1500);
        assert.deepEqual([waits.restart_count, waits.last_exit?.reason], [n, 'The VMM was ended by SIGKILL.']);
        delays.push(((waits.restart_at_ms ?? 0) - (waits.stopped_at_ms ?? 0)) / LEAST);
        pid = (await readyAfter(id, pid)).pid;
        assert.ok(performance.now() - at >= LEAST);
      }
      // counted from the moment at which the end was stored
      for (const [n, times] of [1, 2, 4, 4].entries())
        assert.ok(Math.abs((delays[n] ?? 0) - times) < 0.9, String(delays));
      assert.ok(await killVmm(w, id));
      await until(w, id, 'crashed', 1500);
      await rejects(w.client.exec.run({ vm: id, argv: ['true'] }).next(), 'bad_state', /it is crashed/);
      const stopped = await w.client.vm.stop({ vm: id });
      assert.deepEqual([stopped.state, stopped.restart_at_ms, stopped.restart_count], ['stopped', null, 0]);
      assert.match((await history(id)).at(-1)?.why ?? '', /restart was called off/);
      await sleep(MOST + 200);
      assert.equal((await w.client.vm.get({ vm: id })).state, 'stopped');
      const started = await w.client.vm.start({ vm: id });
      assert.ok(await killVmm(w, id));
      await until(w, id, 'crashed', 1500);
      assert.equal((await w.client.vm.start({ vm: id })).restart_count, 0, 'at once, and the count begins anew');
      assert.notEqual((await w.client.vm.get({ vm: id })).pid, started.pid);
      assert.ok(await killVmm(w, id));
      await until(w, id, 'crashed', 1500);
      await w.client.vm.delete({ vm: id });
      await sleep(2 * LEAST);
      await clear();
    });

    test('an automatic start that fails counts, and goes on until it comes about', async () => {
      const { id } = await create('stubborn', { restart: 'always' });
      const { pid } = await w.client.vm.start({ vm: id });
      await s.behave({ DIE: 3 });
      assert.ok(await killVmm(w, id));
      const failed = await poll('two failed starts', 10_000, async () => {
        const vm = await w.client.vm.get({ vm: id });
        return vm.state === 'failed' && vm.restart_count >= 3 ? vm : undefined;
      });
      assert.match(failed.error?.detail ?? '', /exit code 3/);
      const waiting = w.client.vm.wait({ vm: id });
      await s.behave();
      assert.equal((await waiting).state, 'running');
      const back = await readyAfter(id, pid);
      assert.equal(back.error, null);
      assert.ok((await history(id)).some(h => /automatic restart, 2 in a row/.test(h.why)));
      await clear();
    });

    test('a daemon that is killed while a VM waits, or while it starts, leaves the start to the next one', async () => {
      const { id } = await create('owed', { restart: 'on-crash' });
      const { pid } = await w.client.vm.start({ vm: id });
      await s.behave({ HANG: 1, STALL: 'PUT /machine-config' });
      assert.ok(await killVmm(w, id));
      await until(w, id, 'crashed', 1500);
      await w.kill();
      await w.start();
      await until(w, id, 'starting', 5000);
      await w.kill();
      await s.behave();
      await w.start();
      const back = await readyAfter(id, pid);
      assert.equal(back.restart_at_ms, null);
      await w.kill();
      assert.ok(await killVmm(w, id));
      await w.start();
      await readyAfter(id, back.pid);
      assert.ok((await history(id)).some(h => /ended while no daemon was there/.test(h.why)));
      await s.behave({ HANG: 1, STALL: 'PUT /machine-config' });
      assert.ok(await killVmm(w, id));
      await until(w, id, 'starting', 5000);
      await w.stop();
      await s.behave();
      await w.start();
      await w.client.vm.wait({ vm: id });
      await clear();
    });

    test('an end while no daemon was there is told by what was said last, and answered as the policy wants', async () => {
      const begun = async (
        name: string,
        more: Parameters<typeof create>[1],
        manner: Record<string, string | number>,
      ) => {
        const { id } = await create(name, more);
        await s.behave(manner, id);
        return w.client.vm.start({ vm: id, ...(manner.BOOT_MS === undefined ? {} : { wait: 'running' }) });
      };
      const panic = 'Kernel panic - not syncing: no init';
      const [off, again, mute, bad, dead, young, unkept] = await Promise.all([
        begun('off', { restart: 'on-crash' }, { LAST: '[    9.1] reboot: Power down' }),
        begun('again', {}, {}),
        begun('mute', {}, { LAST: '' }),
        begun('bad', {}, { LAST: `[    9.1] ${panic}\r\n[    9.2] ---[ end` }),
        begun('dead', { restart: 'on-crash' }, {}),
        begun('young', {}, { BOOT_MS: 60_000 }),
        begun('unkept', {}, {}),
      ]);
      for (const { id } of [off, again, mute, bad, dead, young, unkept]) await kept(w, id);
      await w.kill();
      await endKeepers(w, [unkept.id]); // as if the daemon had died before it started one
      for (const { pid } of [off, again, mute, bad, young, unkept])
        process.kill(pid ?? assert.fail('no process'), 'SIGUSR2');
      assert.ok(await killVmm(w, dead.id));
      await noVmm(w);
      await w.start();
      const ended = async ({ id }: Vm) => (await w.client.vm.get({ vm: id })).last_exit;
      const last = async ({ id }: Vm) => {
        const { to, why, actor } = (await history(id))[3] ?? assert.fail('no end');
        return [to, why, actor];
      };
      assert.deepEqual(await last(off), ['stopped', 'The guest powered off itself.', 'guest']);
      assert.equal((await w.client.vm.get({ vm: off.id })).restart_at_ms, null);
      assert.deepEqual(await last(again), ['stopped', 'The guest rebooted itself.', 'guest']);
      await readyAfter(again.id, again.pid);
      const unknown = 'The VMM ended while no daemon was there; its exit status is unknown.';
      const reset = 'The guest reset its machine without a word.'; // which a Firecracker counts
      assert.deepEqual(await last(mute), ['crashed', vmm === 'qemu' ? unknown : reset, 'daemon']);
      const early = 'The guest reset its machine before it was ready.';
      assert.deepEqual(await last(young), ['crashed', vmm === 'qemu' ? unknown : early, 'daemon']);
      assert.equal((await w.client.vm.get({ vm: young.id })).restart_at_ms, null);
      assert.deepEqual(await last(bad), ['crashed', `The guest's kernel panicked: [    9.1] ${panic}`, 'daemon']);
      for (const vm of [dead, unkept]) assert.deepEqual(await last(vm), ['crashed', unknown, 'daemon']);
      assert.match((await ended(unkept))?.console_tail.at(-1) ?? '', /no daemon was there is lost$/);
      await readyAfter(dead.id, dead.pid);
      assert.ok((await ended(off))?.console_tail.includes('[    9.1] reboot: Power down'));
      for (const vm of [off, mute, dead]) {
        const { exit_code, signal, console_tail } = (await ended(vm)) ?? assert.fail('no end');
        assert.deepEqual([exit_code, signal], [null, null]);
        assert.match(console_tail.at(-1) ?? '', /beyond 64 KiB is lost$/);
      }
      assert.ok((await Array.fromAsync(w.client.vm.logs({ vm: off.id }))).some(item => item.type === 'gap'));
      await clear();
    });

    test('after a start of the host: dead states for what ran, then starts in their order; a failed one holds back nobody', {
      timeout: 180_000,
    }, async () => {
      const auto = { auto_start: true };
      const names = ['third', 'second', 'first', 'broken', 'policy', 'plain', 'fresh'];
      await create('third', { ...auto, start_order: 9 });
      await create('second', { ...auto, start_order: 1 });
      await create('first', { ...auto, start_order: 0 });
      const broken = await create('broken', { ...auto, start_order: 0 });
      await create('policy', { restart: 'on-crash', start_order: 5 });
      await create('plain');
      await create('fresh', { ...auto, start_order: 20 });
      for (const vm of ['third', 'second', 'broken', 'policy', 'plain'])
        await w.client.vm.start({ vm, wait: 'running' });
      await w.client.vm.wait({ vm: 'policy' });
      await w.client.vm.pause({ vm: 'policy' });
      const before = new Map((await w.client.vm.list({})).map(vm => [vm.name, vm.pid]));
      await w.kill();
      hostRestarted(w);
      await breakDisk(w, broken.root_ws_id ?? '');
      await w.start();
      const order: string[] = [];
      for (const name of names.filter(n => n !== 'plain' && n !== 'broken')) await w.client.vm.wait({ vm: name });
      const starts = await Promise.all(
        names.map(async name => ({
          name,
          at: (await history(name)).findLast(h => h.to === 'starting' && h.actor === 'daemon'),
        })),
      );
      for (const { name } of starts.filter(e => e.at).sort((a, b) => (a.at?.at_ms ?? 0) - (b.at?.at_ms ?? 0)))
        order.push(name);
      assert.deepEqual(order, ['first', 'second', 'policy', 'third', 'fresh']);
      for (const name of order) assert.notEqual((await w.client.vm.get({ vm: name })).pid, before.get(name));
      const plain = await w.client.vm.get({ vm: 'plain' });
      assert.deepEqual([plain.state, plain.last_exit?.reason, plain.pid], ['crashed', 'The host was restarted.', null]);
      assert.equal((await history('policy')).find(h => h.to === 'crashed')?.from, 'paused');
      const sick = await w.client.vm.get({ vm: 'broken' });
      assert.match(sick.error?.detail ?? '', /disk of workspace/);
      assert.deepEqual([sick.state, sick.restart_at_ms], ['crashed', null], 'its policy wants no further start');
      await w.client.vm.stop({ vm: 'second' });
      await w.kill();
      await w.start();
      assert.equal((await w.client.vm.get({ vm: 'second' })).state, 'stopped', 'the same boot: not started again');
      await clear();
    });
  });
}

/** The records say another boot of the host; no daemon runs. */
const hostRestarted = (w: World): void => {
  const db = new DatabaseSync(join(w.data_dir, 'state.db'));
  try {
    const gone = '00000000-0000-0000-0000-000000000000';
    db.prepare("update notes set value = ? where name = 'boot_id'").run(gone);
    db.prepare("update vms set run = json_set(run, '$.boot_id', ?) where run is not null").run(gone);
  } finally {
    db.close();
  }
};

const breakDisk = async (w: World, ws: string): Promise<void> => {
  const { rm } = await import('node:fs/promises');
  await rm(join(w.data_dir, 'workspaces', ws), { recursive: true });
};
