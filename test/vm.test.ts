/** The life of a VM through the door, with a VMM that behaves as it is told. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Event } from '../src/api/event.ts';
import { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { killVmm, nothingLeft, noVmm, rejects, staged, until, WHILE_PARENT } from './kit/behave.ts';

const s = await staged();
const { w, create, sh } = s;

/** Everything about one VM, in order, from now on. */
const watch = (subject: string): { events: Event[]; stop(): Promise<void> } => {
  const events: Event[] = [];
  const abort = new AbortController();
  const done = (async () => {
    for await (const event of w.client.event.watch({ subject }, { signal: abort.signal })) {
      if ('subject' in event) events.push(event);
    }
  })().catch(() => {});
  const stop = async () => {
    abort.abort(new Error('seen enough'));
    await done;
  };
  return { events, stop };
};

test('created, started, stopped, started, stopped by force, deleted: records, history and events agree', async () => {
  const { id } = await create('life');
  const seen = watch(id);
  await sleep(50);
  await rejects(w.client.vm.stop({ vm: 'life' }), 'bad_state', /Cannot stop VM 'life': it was never started/);
  await rejects(w.client.exec.run({ vm: 'life', argv: ['true'] }).next(), 'bad_state', /never started/);
  const started = await w.client.vm.start({ vm: 'life' });
  assert.deepEqual([started.state, started.guest, started.error], ['running', 'ready', null]);
  assert.ok(started.pid !== null && (await w.vmms()).includes(started.pid));
  await rejects(w.client.vm.start({ vm: id }), 'bad_state', /Cannot start VM 'life': it is running/);
  assert.equal((await sh('life', 'echo in')).stdout.toString(), 'in\n');
  const stopped = await w.client.vm.stop({ vm: 'life' });
  assert.deepEqual([stopped.state, stopped.guest, stopped.pid], ['stopped', null, null]);
  assert.equal(stopped.last_exit?.reason, 'The guest shut down.');
  await noVmm(w);
  await rejects(w.client.vm.stop({ vm: 'life', force: true }), 'bad_state', /it is stopped/);
  await w.client.vm.start({ vm: 'life', wait: 'running' });
  const forced = await w.client.vm.stop({ vm: 'life', force: true });
  assert.deepEqual([forced.last_exit?.reason, forced.last_exit?.signal], ['It was stopped by force.', 'SIGKILL']);
  const history = await w.client.vm.history({ vm: 'life' });
  const states = [
    'created',
    'starting',
    'running',
    'stopping',
    'stopped',
    'starting',
    'running',
    'stopping',
    'stopped',
  ];
  assert.deepEqual(history.map(h => h.to).reverse(), states);
  for (const [i, entry] of history.entries()) assert.equal(entry.from, history[i + 1]?.to ?? null, 'a chain');
  assert.equal((await w.client.vm.history({ vm: 'life', limit: 2 })).length, 2);
  await w.client.vm.delete({ vm: 'life' });
  await rejects(w.client.vm.get({ vm: id }), 'not_found');
  await rejects(w.client.vm.delete({ vm: id }), 'not_found');
  await poll('the last event', 5000, () => seen.events.at(-1)?.type === 'vm.deleted' || undefined);
  await seen.stop();
  assert.deepEqual(
    seen.events
      .filter(e => e.type === 'vm.state')
      .map(({ data: { state, why, actor } }) => ({ to: state, why, actor })),
    history
      .slice(0, -1)
      .reverse()
      .map(({ to, why, actor }) => ({ to, why, actor })),
    'each row of the history has its event',
  );
  assert.ok(seen.events.some(e => e.type === 'vm.guest' && e.data.guest === 'ready'));
  const seqs = seen.events.map(e => e.seq);
  assert.deepEqual(
    seqs,
    [...seqs].sort((a, b) => a - b),
  );
  await nothingLeft(w);
});

test('tags find VMs; what was chosen is changed, and what is wrong is refused', async () => {
  await w.client.vm.create({ name: 'tagged', memory_mib: 64, tags: { team: 'a', tier: 'web' } });
  await w.client.vm.create({ name: 'other', memory_mib: 64, tags: { team: 'b' } });
  const named = async (tag: string[]) => (await w.client.vm.list({ tag })).map(vm => vm.name).sort();
  assert.deepEqual(await named(['team=a']), ['tagged']);
  assert.deepEqual(await named(['team']), ['other', 'tagged']);
  assert.deepEqual(await named(['team=a', 'tier=db']), []);
  const changed = await w.client.vm.update({ vm: 'other', tags: {}, restart: 'always', vcpus: 4, disk_rate_ops: 100 });
  assert.deepEqual(
    [changed.tags, changed.restart, changed.vcpus, changed.disk_rate_ops, changed.memory_mib],
    [{}, 'always', 4, 100, 64],
  );
  assert.deepEqual(await w.client.vm.get({ vm: 'other' }), changed);
  await rejects(w.client.vm.update({ vm: 'other' }), 'invalid', /no change/);
  await rejects(w.client.vm.update({ vm: 'other', tags: { 'a b': '' } }), 'invalid', /tags/);
  await rejects(w.client.vm.create({ name: 'low', vcpus: 33 }), 'invalid', /vcpus/);
  const cids = (await w.client.vm.list({ tag: [] })).map(vm => vm.vsock_cid);
  assert.ok(cids.every(cid => cid >= 3) && new Set(cids).size === cids.length, String(cids));
  for (const vm of ['tagged', 'other']) await w.client.vm.delete({ vm });
});

test('deleted from every state; the name is free again at once', async () => {
  for (const state of ['created', 'running', 'stopped', 'crashed', 'failed', 'starting', 'stopping'] as const) {
    const { id } = await create('gone');
    const pending: Promise<unknown>[] = [];
    if (state === 'failed') {
      await s.behave({ DIE: 3 });
      await rejects(w.client.vm.start({ vm: id }), 'vmm');
      await s.behave();
    } else if (state === 'starting') {
      await s.behave({ HANG: 1 });
      pending.push(rejects(w.client.vm.start({ vm: id }), 'canceled', /ended by vm\.delete/));
      await until(w, id, 'starting');
      await s.behave();
    } else if (state !== 'created') await w.client.vm.start({ vm: id });
    if (state === 'stopped') await w.client.vm.stop({ vm: id });
    if (state === 'crashed') assert.ok(await killVmm(w, id));
    if (state === 'stopping') {
      await w.client.vm.stop({ vm: id, force: true });
      await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
      await w.client.vm.start({ vm: id, wait: 'running' });
      await s.behave();
      pending.push(rejects(w.client.vm.stop({ vm: id }), 'canceled', /ended by vm\.delete/));
    }
    await until(w, id, state);
    await w.client.vm.delete({ vm: 'gone' });
    await Promise.all(pending);
    await nothingLeft(w);
  }
  assert.deepEqual(await w.client.ws.list({}), []);
});

test('ten starts at once: one VMM; ten deletes at once: one deletes', async () => {
  const { id } = await create('many');
  const starts = await Promise.allSettled(Array.from({ length: 10 }, () => w.client.vm.start({ vm: id })));
  assert.equal(starts.filter(r => r.status === 'fulfilled').length, 1);
  for (const r of starts) {
    if (r.status === 'rejected') assert.ok(r.reason instanceof Fault && ['busy', 'bad_state'].includes(r.reason.code));
  }
  assert.equal((await w.vmms()).length, 1);
  const stops = await Promise.all(Array.from({ length: 5 }, () => w.client.vm.stop({ vm: id })));
  assert.deepEqual(
    stops.map(v => v.state),
    Array(5).fill('stopped'),
    'all asked for the same and got it',
  );
  const stopping = (await w.client.vm.history({ vm: id })).filter(h => h.to === 'stopping');
  assert.equal(stopping.length, 1);
  const deletes = await Promise.allSettled(Array.from({ length: 10 }, () => w.client.vm.delete({ vm: id })));
  assert.equal(deletes.filter(r => r.status === 'fulfilled').length, 1);
  for (const r of deletes) {
    if (r.status === 'rejected') assert.equal(r.reason.code, 'not_found');
  }
  await nothingLeft(w);
});

test('a stop ends a start, wherever it is', { timeout: 60_000 }, async () => {
  const { id } = await create('early');
  await s.behave({ HANG: 1 });
  const start = rejects(w.client.vm.start({ vm: id }), 'canceled', /VM 'early' was ended by vm\.stop/);
  await poll('the VMM', 5000, async () => (await w.vmms()).length === 1 || undefined);
  const stopped = await w.client.vm.stop({ vm: id });
  await start;
  assert.deepEqual([stopped.state, stopped.error, stopped.pid], ['stopped', null, null]);
  await noVmm(w);
  await s.behave();
  for (let ms = 0; ms <= 220; ms += 20) {
    const started = w.client.vm.start({ vm: id, wait: 'running' }).then(
      () => 'started',
      (e: unknown) => (e instanceof Fault ? e.code : String(e)),
    );
    await sleep(ms);
    const vm = await w.client.vm.stop({ vm: id, force: true }).catch((e: unknown) => {
      // it came before the start did
      assert.ok(e instanceof Fault && e.code === 'bad_state', String(e));
      return undefined;
    });
    const outcome = await started;
    if (vm === undefined) {
      assert.equal(outcome, 'started');
      await w.client.vm.stop({ vm: id, force: true });
    } else {
      assert.equal(vm.state, 'stopped');
      assert.ok(outcome === 'canceled' || outcome === 'started', outcome);
    }
    await noVmm(w);
  }
  await w.client.vm.start({ vm: id });
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a stop while the start waits for the guest: the start is told that it ended', async () => {
  const { id } = await create('waits');
  await s.behave({ BOOT_MS: 60_000 });
  const start = rejects(w.client.vm.start({ vm: id }), 'vmm', /ended before its guest was ready/);
  await until(w, id, 'running');
  await w.client.vm.stop({ vm: id, force: true });
  await start;
  await s.behave();
  const none = await w.client.vm.start({ vm: id, wait: 'none' });
  assert.equal(none.state, 'starting');
  await until(w, id, 'running');
  await w.client.vm.delete({ vm: id });
});

test('a VMM that dies at once: its last words, and the VM can be started again', async () => {
  const { id } = await create('dies');
  await s.behave({ DIE: 3 });
  const fault = await rejects(w.client.vm.start({ vm: id }), 'vmm', /'dies'.*exit code 3.*told to die/);
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.error?.code, vm.error?.detail], ['failed', 'vmm', fault.message]);
  assert.deepEqual([vm.pid, vm.guest], [null, null]);
  const none = await w.client.vm.start({ vm: id, wait: 'none' });
  assert.ok(none.state === 'starting' || none.state === 'failed');
  await until(w, id, 'failed');
  await s.behave({ REFUSE: 'cont' });
  await rejects(w.client.vm.start({ vm: id }), 'vmm', /told to refuse/);
  await noVmm(w);
  await s.behave();
  const up = await w.client.vm.start({ vm: id });
  assert.deepEqual([up.state, up.error], ['running', null]);
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a VMM that ends between its answer and the record of it: crashed, with evidence', async () => {
  const { id } = await create('short');
  for (const RESET_MS of [0, 1, 5, 20, 60]) {
    await s.behave({ RESET_MS, BOOT_MS: 60_000, CONSOLE: 'the last line\r\n', LAST: '' });
    await rejects(w.client.vm.start({ vm: id }), 'vmm');
    const vm = await poll('its end', 5000, async () => {
      const now = await w.client.vm.get({ vm: id });
      return now.state === 'crashed' || now.state === 'failed' ? now : undefined;
    });
    await noVmm(w);
    if (vm.state === 'failed') continue;
    assert.match(vm.last_exit?.reason ?? '', /reset its machine/);
    assert.ok(vm.last_exit?.console_tail.includes('the last line'), JSON.stringify(vm.last_exit));
  }
  await s.behave();
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a VMM that is killed: crashed within 1.5 s, with evidence; what ran in it is told', async () => {
  const { id } = await create('victim');
  await w.client.vm.start({ vm: id });
  const exec = execResult(w.client.exec.run({ vm: id, argv: WHILE_PARENT })).catch((e: unknown) => e);
  const logs: string[] = [];
  const followed = (async () => {
    for await (const m of w.client.vm.logs({ vm: id, follow: true })) logs.push(m.type === 'line' ? m.line : m.type);
  })();
  await poll('the first line', 5000, () => logs.length > 0 || undefined);
  assert.ok(await killVmm(w, id));
  const vm = await until(w, id, 'crashed', 1500);
  assert.equal(vm.last_exit?.reason, 'The VMM was ended by SIGKILL.');
  assert.deepEqual([vm.last_exit?.signal, vm.last_exit?.exit_code], ['SIGKILL', null]);
  assert.ok(vm.last_exit?.console_tail.some(line => line.includes('stand-in: up')));
  const broken = await exec;
  assert.ok(broken instanceof Fault && ['guest', 'bad_state', 'canceled'].includes(broken.code), String(broken));
  await followed;
  assert.equal(logs.at(-1), 'end');
  await rejects(w.client.exec.run({ vm: id, argv: ['true'] }).next(), 'bad_state', /it is crashed/);
  await w.client.vm.start({ vm: id });
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a guest that never rings: a timeout, the VM goes on; politeness has an end, force needs none', async () => {
  const { id } = await create('mute');
  await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
  const fault = await rejects(w.client.vm.start({ vm: id, timeout_ms: 200 }), 'timeout', /did not ring within 200 ms/);
  assert.match(fault.hint ?? '', /vm logs mute.*vm stop mute --force/);
  const vm = await w.client.vm.get({ vm: id });
  assert.deepEqual([vm.state, vm.guest], ['running', 'connecting']);
  const polite = rejects(w.client.vm.stop({ vm: id }), 'canceled', /ended by vm\.stop/);
  await until(w, id, 'stopping');
  const began = performance.now();
  const forced = await w.client.vm.stop({ vm: id, force: true });
  assert.ok(performance.now() - began < 8000, 'force does not wait for the polite stop');
  assert.deepEqual([forced.state, forced.last_exit?.reason], ['stopped', 'It was stopped by force.']);
  await polite;
  await w.client.vm.start({ vm: id, wait: 'running' });
  const stubborn = await w.client.vm.stop({ vm: id, timeout_ms: 100 });
  assert.equal(stubborn.last_exit?.reason, 'The VMM did not end; SIGKILL was needed.');
  await s.behave({ BOOT_MS: 60_000 });
  await w.client.vm.start({ vm: id, wait: 'running' });
  const termed = await w.client.vm.stop({ vm: id, timeout_ms: 100 });
  assert.match(termed.last_exit?.reason ?? '', /did not shut down in time; the VMM was ended by SIGTERM/);
  await s.behave();
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a VMM that is killed while its guest is asked to shut down is not called a clean stop', async () => {
  const { id } = await create('halfway');
  await s.behave({ BOOT_MS: 60_000, STUBBORN: 1 });
  await w.client.vm.start({ vm: id, wait: 'running' });
  const stop = w.client.vm.stop({ vm: id });
  await until(w, id, 'stopping');
  assert.ok(await killVmm(w, id));
  const vm = await stop;
  assert.equal(vm.state, 'stopped');
  assert.match(vm.last_exit?.reason ?? '', /ended while the guest was asked to shut down \(SIGKILL\)/);
  await s.behave();
  await w.client.vm.delete({ vm: id });
});

test('stale sockets in the run directory are no obstacle', async () => {
  const { id } = await create('stale');
  const run = join(w.data_dir, 'vms', id, 'run');
  await mkdir(run, { recursive: true });
  const server = createServer().listen(join(run, 'qmp.sock'));
  await new Promise(resolve => server.once('listening', resolve));
  await writeFile(join(run, 'nexus.egress.1.sock'), '');
  const vm = await w.client.vm.start({ vm: id });
  assert.deepEqual([vm.state, vm.guest], ['running', 'ready']);
  server.close();
  await w.client.vm.delete({ vm: id });
  await nothingLeft(w);
});

test('a name of 63 characters, whose disk cannot be named after it', async () => {
  const name = `a${'.-'.repeat(30)}bc`;
  const vm = await create(name);
  assert.equal(name.length, 63);
  assert.match((await w.client.ws.inspect({ ws: vm.root_ws_id ?? '' })).name, /^ws-/);
  const taken = await w.client.ws.create({ name: 'short-root', size_bytes: 16 * 1024 * 1024 });
  const other = await create('short');
  assert.notEqual(other.root_ws_id, taken.id);
  for (const one of [name, 'short']) await w.client.vm.delete({ vm: one });
  await w.client.ws.remove({ ws: taken.id });
  await nothingLeft(w);
});

test('the console of a VM: past lines, as many as asked, and on to its end', async () => {
  const { id } = await create('talks');
  const lines = async (args: { follow?: boolean; tail?: number }) => {
    const got: string[] = [];
    for await (const m of w.client.vm.logs({ vm: id, ...args })) got.push(m.type === 'line' ? m.line : m.type);
    return got;
  };
  assert.deepEqual(await lines({}), ['end'], 'never started');
  await s.behave({ CONSOLE: 'one\r\ntwo\r\n\u001b[31mthree\r\n' });
  await w.client.vm.start({ vm: id });
  await s.behave();
  assert.deepEqual((await lines({})).slice(1), ['one', 'two', 'three', 'end'], 'no colours');
  assert.match((await lines({}))[0] ?? '', /start of VM 'talks', kernel/);
  assert.deepEqual(await lines({ tail: 1 }), ['three', 'end']);
  assert.deepEqual(await lines({ tail: 0 }), ['end']);
  const followed = lines({ follow: true, tail: 1 });
  await sleep(100);
  await w.client.vm.stop({ vm: id });
  const all = await followed;
  assert.deepEqual([all[0], all.at(-1)], ['three', 'end']);
  assert.ok(all.includes('reboot: Restarting system'), 'the last line came before the end');
  assert.deepEqual((await lines({ follow: true, tail: 1 })).at(-1), 'end', 'nothing to follow');
  await w.client.vm.delete({ vm: id });
  await rejects(w.client.vm.logs({ vm: id }).next(), 'not_found');
});

test('twenty VMs at once', { timeout: 60_000 }, async () => {
  const names = Array.from({ length: 20 }, (_, i) => `n${i}`);
  await Promise.all(names.map(create));
  const uids = new Set((await w.client.ws.list({})).map(ws => ws.vm_id));
  assert.equal(uids.size, 20);
  const vms = await Promise.all(names.map(vm => w.client.vm.start({ vm, timeout_ms: 40_000 })));
  assert.ok(vms.every(vm => vm.state === 'running' && vm.guest === 'ready'));
  assert.equal((await w.vmms()).length, 20);
  const out = await Promise.all(names.map(vm => sh(vm, 'echo hello')));
  assert.ok(out.every(r => r.stdout.toString() === 'hello\n' && r.exit_code === 0));
  assert.equal((await w.client.vm.list({ state: 'running' })).length, 20);
  assert.deepEqual((await w.client.daemon.get({})).vms, { running: 20 });
  await Promise.all(names.map(vm => w.client.vm.delete({ vm })));
  await nothingLeft(w);
});
