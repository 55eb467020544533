/** The Firecracker driver against a hostile VMM and a hostile guest, on each of its sockets. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { mkdir, rename, stat, symlink, unlink, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { poll, sleep, withDeadline } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import { signsAfter } from '../src/vmm/end.ts';
import { ensureFifos } from '../src/vmm/fifo.ts';
import { FirecrackerApi } from '../src/vmm/firecracker_api.ts';
import { RunDir } from '../src/vmm/run_dir.ts';
import { type Bench, bench, closed, echoed, egressOf, fault, ID, nothingIn, sockets, soon } from './standin/vmm.ts';

const KIND = 'firecracker';
const QUICK = { answer_ms: 5000, command_ms: 700 };

/** A client of the API beside the driver's own. */
const client = (b: Bench): Disposable & { api: FirecrackerApi; dir: RunDir } => {
  const dir = new RunDir(b.spec.dir);
  const api = new FirecrackerApi(signal => dir.connect('api.sock', signal));
  return {
    api,
    dir,
    [Symbol.dispose]: () => {
      api.close();
      dir[Symbol.dispose]();
    },
  };
};

test('whatever the API answers to a start, the start fails with a reason, and nothing is left', async () => {
  const says = {
    garbage: /something that is no HTTP/,
    huge: /more than 262144 bytes/,
    nojson: /status 400 and no reason/,
    drip: /PUT \/vsock on Firecracker took longer than 700 ms/,
    close: /socket hang up|control socket/,
    busy: /Too many open connections/,
  };
  for (const [LIE_WITH, text] of Object.entries(says)) {
    await using b = await bench(KIND, { LIE: 'PUT /vsock', LIE_WITH }, QUICK);
    await assert.rejects(b.start(), fault('vmm', text), LIE_WITH);
    await nothingIn(b.vmm, b.root);
    assert.deepEqual(await sockets(b.spec.dir), []);
  }
});

test('wherever it dies on the way up, the start says how and with which words', async () => {
  const points = ['listen', 'api', 'PUT /machine-config', 'PUT /drives/disk0', 'PUT /vsock', 'InstanceStart'];
  for (const DIE_AT of points) {
    await using b = await bench(KIND, { DIE_AT, DIE_CODE: 148 });
    await assert.rejects(b.start(), fault('vmm', /ended at once with exit code 148: .*told to die\.$/), DIE_AT);
    await nothingIn(b.vmm, b.root);
    assert.deepEqual(await sockets(b.spec.dir), []);
  }
  await using b = await bench(KIND, { DIE_AT: 'PUT /entropy', DIE_SIGNAL: 'SIGSEGV' });
  await assert.rejects(b.start(), fault('vmm', /ended at once by SIGSEGV: .*told to die\.$/));
  await using c = await bench(KIND, { DIE_AFTER: 'InstanceStart', DIE_CODE: 1 });
  const end = await (await c.start()).ended;
  assert.deepEqual([end.exit_code, end.guest_reset, end.last_words], [1, false, ['told to die']]);
});

test('a refusal names the part and the file, as Firecracker says it', async () => {
  await using b = await bench(KIND);
  const spec = { vcpus: 33 };
  await assert.rejects(
    b.start(spec),
    fault('vmm', /Firecracker refused PUT \/machine-config: .*vcpu_count must be <= 32/),
  );
  await assert.rejects(b.start({ vsock_cid: 2 }), fault('vmm', /refused PUT \/vsock: .*guest_cid must be >= 3/));
  await nothingIn(b.vmm, b.root);
});

test('a guest that resets is told apart from one that crashed its processor, by what the VMM counted', async () => {
  await using b = await bench(KIND, { RESET_MS: 50, EXIT_CODE: 1 });
  const end = await (await b.start()).ended;
  assert.deepEqual([end.exit_code, end.guest_reset], [1, true]);
});

test('the API serves one connection of ours, and none when there is nothing to ask', async () => {
  await using b = await bench(KIND, {}, QUICK);
  const machine = await b.start();
  const others: Socket[] = [];
  const open = async (n: number) => {
    for (; others.length < n; ) others.push(connect(join(b.spec.dir, 'api.sock')));
    await Promise.all(others.map(socket => socket.pending && once(socket, 'connect')));
  };
  await open(9);
  for (let n = 0; n < 20; n++) assert.equal(await machine.ctrlAltDel(), true);
  await sleep(1500); // ours is closed meanwhile
  await open(10);
  await sleep(100);
  await assert.rejects(machine.ctrlAltDel(), fault('vmm', /Too many open connections/));
  for (const socket of others) socket.destroy();
  await sleep(100);
  assert.equal(await machine.ctrlAltDel(), true);
});

test('an API that falls silent stops no other thing', async () => {
  await using b = await bench(KIND, { STALL: 'SendCtrlAltDel' }, QUICK);
  const machine = await b.start();
  await assert.rejects(machine.ctrlAltDel(), fault('vmm', /SendCtrlAltDel|PUT \/actions on Firecracker took longer/));
  assert.ok((await machine.usage()).memory_bytes > 0);
  assert.equal(await echoed(await machine.openControl(soon()), 'well'), 'well');
  await machine.pause();
  await machine.resume();
  await machine.signal('SIGTERM');
  assert.equal((await machine.ended).signal, 'SIGTERM');
});

test('bytes that come with the answer to CONNECT are not lost, and an answer may come byte by byte', async () => {
  await using b = await bench(KIND, { CONNECT: 'glued' });
  assert.equal(await echoed(await (await b.start()).openControl(soon()), ' and more'), 'glued and more');
  await using c = await bench(KIND, { CONNECT: 'drip' });
  assert.equal(await echoed(await (await c.start()).openControl(soon()), 'slow'), 'slow');
});

test('each way not to answer CONNECT has its own fault', { timeout: 60_000 }, async () => {
  const says = {
    silent: ['guest', /has not answered within 3000 ms/],
    noline: ['guest', /has not answered within 3000 ms/],
    garbage: ['vmm', /is not one of Firecracker/],
    huge: ['vmm', /is not one of Firecracker/],
    broken: ['vmm', /broke off/],
    close: ['guest', /nobody in the guest listens on port 1024/],
  } as const;
  const tries = Object.entries(says).map(async ([CONNECT, [code, text]]) => {
    await using b = await bench(KIND, { CONNECT });
    const machine = await b.start();
    await assert.rejects(machine.openControl(soon()), fault(code, text), CONNECT);
    await assert.rejects(machine.openControl(AbortSignal.timeout(30)), CONNECT);
  });
  await Promise.all(tries);
});

test('a guest whose driver is not there yet is silent, then answers', async () => {
  await using b = await bench(KIND, { BOOT_MS: 1500 });
  const machine = await b.start();
  await assert.rejects(machine.openControl(AbortSignal.timeout(200)), { name: 'TimeoutError' });
  assert.equal(await echoed(await machine.openControl(soon()), 'awake'), 'awake');
});

test('a VMM that dies at CONNECT ends the attempt', async () => {
  await using b = await bench(KIND, { DIE_AT: 'CONNECT', DIE_CODE: 149 });
  const machine = await b.start();
  await assert.rejects(machine.openControl(soon()), fault('guest', /nobody/));
  assert.equal((await machine.ended).exit_code, 149);
  await assert.rejects(machine.openControl(soon()), fault('vmm', /ended/));
});

test('a link in the place of a socket is not followed', async () => {
  await using b = await bench(KIND);
  const machine = await b.start();
  await sleep(1300); // the connection to the API is closed then
  let reached = 0;
  const trap = createServer(() => reached++)
    .unref()
    .listen(join(b.root, 'trap'));
  await once(trap, 'listening');
  for (const name of ['v.sock', 'api.sock']) {
    const path = join(b.spec.dir, name);
    await rename(path, `${path}.real`);
    await symlink(join(b.root, 'trap'), path);
  }
  await assert.rejects(machine.openControl(soon()), fault('vmm', /cannot be reached/));
  await assert.rejects(machine.ctrlAltDel(), fault('vmm', /Ctrl-Alt-Del/));
  assert.equal(reached, 0, 'a link led us to a socket of somebody else');
  trap.close();
  for (const name of ['v.sock', 'api.sock']) await unlink(join(b.spec.dir, name));
});

test('a guest that dials a thousand times costs eight streams, and is heard again', async () => {
  await using b = await bench(KIND, { DIALS: 1000 });
  const machine = await b.start();
  const open = new Set<unknown>();
  let most = 0;
  let all = 0;
  machine.onEgress(stream => {
    all++;
    open.add(stream.once('close', () => open.delete(stream)));
    most = Math.max(most, open.size);
  });
  await sleep(3000);
  // one closes a turn after the next has come
  assert.ok(most <= 9, `${most} streams were open at once`);
  assert.ok(all <= 64 * 4, `${all} streams in 3 s`);
  assert.equal(await echoed(await machine.openControl(soon()), 'alive'), 'alive');
  const before = all;
  await poll('another dial', 10_000, () => (all > before ? true : undefined));
});

test('a guest that dials without end costs little', async () => {
  await using b = await bench(KIND, { DIAL_LOOP: 1 });
  const machine = await b.start();
  const egress = egressOf(machine);
  const before = process.cpuUsage();
  await sleep(2000);
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < 1_000_000, `${(user + system) / 1000} ms of CPU in 2 s`);
  await egress.next();
  assert.equal(await echoed(await machine.openControl(soon()), 'alive'), 'alive');
});

test('counters add up, over a daemon that ends too', async () => {
  await using b = await bench(KIND);
  const machine = await b.start();
  await poll('the line of the start', 5000, async () => (await exists(join(b.spec.dir, 'counted'))) || undefined);
  const first = await machine.usage();
  // one at the start, one that was asked for
  assert.deepEqual([first.disk_read_bytes, first.disk_write_bytes], [2000, 1000]);
  assert.equal((await machine.usage()).disk_read_bytes, 2000, 'asked too often');
  await sleep(1100);
  assert.equal((await machine.usage()).disk_read_bytes, 3000);
  await machine.pause();
  await sleep(1100);
  assert.equal((await machine.usage()).disk_read_bytes, 3000, 'a paused one cannot be asked');
  await machine.resume();
  await machine.release();
  const { proc } = machine;
  const again = await b.vmm.adopt({ id: ID, dir: b.spec.dir, vsock_cid: 3, proc, accel: 'kvm' }, soon());
  assert.equal((await again.usage()).disk_read_bytes, 4000);
});

/** What a VMM counted before it ended, kept in its FIFO. */
const counted = async (b: Bench): Promise<Disposable> => {
  const fifo = join(b.spec.dir, 'metrics');
  await mkdir(b.spec.dir, { recursive: true });
  await ensureFifos([fifo]);
  const fd = openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK);
  writeSync(fd, '{"block":{"read_bytes":70000,"write_bytes":0},"i8042":{"reset_count":1}}\n');
  return { [Symbol.dispose]: () => closeSync(fd) };
};

test('what an earlier VMM counted is not of the next, and is known to each daemon until then', async () => {
  await using b = await bench(KIND);
  using _kept = await counted(b);
  for (let daemon = 1; daemon <= 2; daemon++) assert.equal((await signsAfter(b.spec.dir, KIND)).guest_reset, true);
  using _more = await counted(b);
  const machine = await b.start();
  await poll('the line of the start', 5000, async () => (await exists(join(b.spec.dir, 'counted'))) || undefined);
  assert.equal((await machine.usage()).disk_read_bytes, 2000);
});

test('the program that was admitted is started, whatever the driver would start now', async () => {
  await using b = await bench(KIND);
  const program = join(b.root, 'admitted');
  await writeFile(program, `#!/bin/sh\n: >'${b.root}/ran'\nexec '${b.program}' "$@"\n`, { mode: 0o755 });
  await b.start({ program });
  assert.ok(await exists(join(b.root, 'ran')));
});

test('metrics that are none do no harm', async () => {
  for (const METRICS of ['garbage', 'huge', 'flood']) {
    await using b = await bench(KIND, { METRICS });
    const machine = await b.start();
    const rss = process.memoryUsage().rss;
    for (let n = 0; n < 2; n++) {
      const { disk_read_bytes: read } = await machine.usage();
      assert.ok(read === null || (read >= 0 && Number.isSafeInteger(read)), `${METRICS}: ${read}`);
      await sleep(1100);
    }
    assert.equal(await echoed(await machine.openControl(soon()), 'alive'), 'alive');
    assert.ok(process.memoryUsage().rss - rss < 100 * 1024 * 1024, METRICS);
  }
});

test('a log that grows is cut, also one that is not appended to, and what lies in its place is left alone', async () => {
  await using b = await bench(KIND);
  const machine = await b.start();
  using c = client(b);
  const path = join(b.spec.dir, 'own.log');
  // each refusal is a line
  const long = 'x'.repeat(12_000);
  for (let n = 0; n < 140; n++) await assert.rejects(c.api.put(`/${long}`, {}));
  assert.ok((await stat(path)).size > 1_500_000);
  await c.dir.boundLogs();
  // it is cut by itself too, now and then: then some of it is there again
  assert.ok((await stat(path)).blocks * 512 <= 1024 * 1024);
  await assert.rejects(c.api.put('/what', {}));
  await c.dir.boundLogs();
  assert.match((await c.dir.lastWords()).at(-1) ?? '', /PUT \/what: Invalid request method/);
  await unlink(path);
  await symlink('/etc/passwd', path);
  assert.deepEqual(await c.dir.lastWords(), []);
  await machine.signal('SIGKILL');
  await withDeadline('its end', 5000, machine.ended);
});

test('open streams of a machine that is let go end, the guest goes on', async () => {
  await using b = await bench(KIND);
  const machine = await b.start();
  const stream = await machine.openControl(soon());
  await machine.release();
  await closed(stream);
  await assert.rejects(machine.openControl(soon()), fault('vmm', /was let go/));
  using c = client(b);
  assert.deepEqual(await c.api.get('/machine-config'), { vcpu_count: 1, mem_size_mib: 64, smt: false });
});

test('the stand-in is as strict as Firecracker: order, unknown fields, limits, both forms of error', async () => {
  await using b = await bench(KIND);
  await b.start();
  using c = client(b);
  const put = (path: string, body: object) => c.api.put(path, body);
  await assert.rejects(put('/entropy', {}), /PUT \/entropy: .*not supported after starting the microVM/);
  await assert.rejects(put('/actions', { action_type: 'InstanceStart' }), /not supported after starting/);
  await assert.rejects(put('/actions', { action_type: 'Start' }), /must be equal to one of the allowed values/);
  await assert.rejects(put('/machine-config', { vcpu_count: 1, mem_size_mib: 64, typo: 1 }), /unknown field typo/);
  await assert.rejects(put('/machine-config', { vcpu_count: 1 }), /must have required property 'mem_size_mib'/);
  await assert.rejects(put('/nothing', {}), /Invalid request method and\/or path: PUT \/nothing/);
  await assert.rejects(put('/entropy', { x: 'x'.repeat(52_000) }), /more than the 51200 it takes/);
  const raw = connect(join(b.spec.dir, 'api.sock'));
  raw.write('PUT /entropy HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n');
  const [answer] = await once(raw, 'data');
  assert.match(
    String(answer),
    /^HTTP\/1.1 400 (?:.|\s)*\{"error":"Request payload with size 60000 is larger than the limit/,
  );
  raw.destroy();
});
