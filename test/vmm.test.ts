/** What every driver does, on the stand-ins of both. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile, stat, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { isAlive, type ProcRef } from '../src/lib/proc.ts';
import { ACCEL, bench, closed, echoed, egressOf, fault, ID, nothingIn, sockets, soon } from './standin/vmm.ts';

const KINDS = ['firecracker', 'qemu'] as const;

/** In what they differ. */
const SAYS = {
  firecracker: {
    version: '1.12.1',
    why: /KVM runs guests/,
    missing: [/there is no Firecracker/, /NEXUS_FIRECRACKER/],
    termed: { exit_code: null, signal: 'SIGTERM' },
    words: [],
    silent: [{ STALL: 'listen' }, { STALL: 'PUT /machine-config' }, { STALL: 'InstanceStart' }],
    refusing: ['PUT /machine-config', 'PUT /boot-source', 'PUT /drives/disk0', 'PUT /vsock', 'InstanceStart'],
    longest: 1983,
  },
  qemu: {
    version: '7.2.22',
    why: /there is no \/dev\/kvm/,
    missing: [/there is no QEMU/, /apt-get install/],
    termed: { exit_code: 0, signal: null },
    words: ['qemu-system-x86_64: terminating on signal 15 from pid 1 (a test)'],
    silent: [{ HANG: '1' }, { NO_SOCKET: '1' }, { STALL: 'cont' }],
    refusing: ['chardev-add', 'device_add', 'cont'],
    longest: 2047,
  },
} as const;

/** A host that gives its KVM to nobody: no VMM with a user of its own can have it. */
const kvmIsRoots = async (): Promise<boolean> => {
  const device = await stat('/dev/kvm').catch(() => undefined);
  return (
    device !== undefined && (device.mode & 0o006) !== 0o006 && (device.gid === 0 || (device.mode & 0o060) !== 0o060)
  );
};

for (const kind of KINDS) {
  const says = SAYS[kind];

  test(`${kind}: a machine starts, is found, ends when told, and leaves no socket`, async () => {
    await using b = await bench(kind, { CONSOLE: 'hello\r\n' });
    let spawned: ProcRef | undefined;
    const machine = await b.vmm.start(b.spec, soon(), async proc => {
      spawned = proc;
      assert.ok(await isAlive(proc), 'told of a process that does not live');
    });
    assert.deepEqual(spawned, machine.proc);
    assert.deepEqual(await b.vmm.find(join(b.root, 'run')), [{ kind, vm_id: ID, proc: machine.proc, dir: b.spec.dir }]);
    assert.deepEqual(await b.vmm.find(join(b.spec.dir, 'deeper')), []);
    await machine.signal('SIGTERM');
    const end = await machine.ended;
    assert.deepEqual(end, {
      ...says.termed,
      known: true,
      guest_reset: false,
      guest_panicked: false,
      last_words: says.words,
    });
    assert.deepEqual(await sockets(b.spec.dir), []);
    await nothingIn(b.vmm, b.root);
    await machine.signal('SIGKILL'); // of a gone process: nothing
    await machine.release();
  });

  test(`${kind}: the facts say which accelerator and why`, async () => {
    await using b = await bench(kind);
    const facts = b.vmm.facts();
    assert.deepEqual(
      [facts.kind, facts.version, facts.accel, facts.tsc_khz],
      [kind, says.version, ACCEL[kind], 2_500_000],
    );
    assert.match(facts.why, says.why);
  });

  test(`${kind}: without the program the fault says what helps, and it may come later`, async () => {
    await using late = await bench(kind);
    const program = join(late.root, 'program');
    await using b = await bench(kind, {}, { program });
    assert.deepEqual([b.vmm.facts().accel, b.vmm.facts().version], [null, null]);
    const [why, hint] = says.missing;
    await assert.rejects(b.start(), (error: unknown) => {
      assert.ok(error instanceof Fault);
      assert.match(error.hint ?? '', hint);
      return fault('host', why)(error);
    });
    await symlink(late.program, program);
    assert.equal((await b.vmm.refresh()).version, says.version);
    await b.start();
  });

  test(`${kind}: every control connection is a fresh one, whatever came before`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    for (let i = 0; i < 40; i++) {
      const stream = await machine.openControl(soon());
      if (i % 3 === 0) stream.write('left behind, never read'.repeat(1000));
      else assert.equal(await echoed(stream, `hello ${i}`), `hello ${i}`);
      stream.destroy();
    }
  });

  test(`${kind}: a stream carries megabytes with back-pressure`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    const stream = await machine.openControl(soon());
    const size = 4 * 1024 * 1024;
    let held = 0;
    stream.pause();
    for (let sent = 0; sent < size; sent += 65_536) {
      if (!stream.write(Buffer.alloc(65_536, 7))) held++;
    }
    assert.ok(held > 0, 'write never asked to wait');
    await sleep(50);
    assert.ok(stream.writableLength > 0, 'nobody reads, and yet all was taken');
    let got = 0;
    for await (const chunk of stream) {
      got += chunk.length;
      if (got === size) break;
    }
    assert.equal(got, size);
  });

  test(`${kind}: an egress port is there from the start and comes again when the guest closes it`, async () => {
    await using b = await bench(kind, { EGRESS_MS: '500' });
    const machine = await b.start();
    const egress = egressOf(machine);
    const first = await egress.next();
    assert.equal(await echoed(first, 'one'), 'one');
    first.resume();
    await closed(first);
    const second = await egress.next();
    assert.notEqual(first, second);
  });

  test(`${kind}: an egress port that the host ends comes again`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    const egress = egressOf(machine);
    (await egress.next()).destroy();
    assert.equal(await echoed(await egress.next(), 'two'), 'two');
  });

  test(`${kind}: a guest that resets is told apart from a VMM that is killed`, async () => {
    await using b = await bench(kind, { RESET_MS: '30' });
    const reset = await (await b.start()).ended;
    assert.deepEqual([reset.exit_code, reset.guest_reset], [0, true]);
    await using c = await bench(kind);
    const machine = await c.start();
    await machine.signal('SIGKILL');
    const killed = await machine.ended;
    assert.deepEqual(
      [killed.exit_code, killed.signal, killed.known, killed.guest_reset],
      [null, 'SIGKILL', true, false],
    );
    assert.deepEqual(await sockets(c.spec.dir), []);
    await assert.rejects(machine.openControl(soon()), fault('vmm', /ended/));
  });

  test(`${kind}: open streams end with the VMM`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    const stream = await machine.openControl(soon());
    await machine.signal('SIGKILL');
    await Promise.all([machine.ended, closed(stream)]);
  });

  test(`${kind}: a VMM that dies at once gives its last words, made safe`, async () => {
    await using b = await bench(kind, { DIE: '3' });
    await assert.rejects(b.start(), fault('vmm', /ended at once with exit code 3: .*told to die$|told to die\.$/));
    await nothingIn(b.vmm, b.root);
  });

  test(`${kind}: a VMM that never answers is ended, and so is one that refuses`, async () => {
    for (const vars of says.silent) {
      await using b = await bench(kind, vars, { answer_ms: 700, command_ms: 500 });
      await assert.rejects(b.start(), fault('vmm', /took longer than \d+ ms/), JSON.stringify(vars));
      await nothingIn(b.vmm, b.root);
      assert.deepEqual(await sockets(b.spec.dir), []);
    }
    for (const REFUSE of says.refusing) {
      await using b = await bench(kind, { REFUSE });
      await assert.rejects(b.start(), fault('vmm', /told to refuse/), REFUSE);
      await nothingIn(b.vmm, b.root);
      assert.deepEqual(await sockets(b.spec.dir), []);
    }
  });

  test(`${kind}: a start that is aborted or not wanted any more is undone`, async () => {
    await using b = await bench(kind, says.silent[1]);
    await assert.rejects(
      b.vmm.start(b.spec, AbortSignal.timeout(300), async () => {}),
      { name: 'TimeoutError' },
    );
    await nothingIn(b.vmm, b.root);
    await using c = await bench(kind);
    const onSpawn = async () => {
      throw new Error('not stored');
    };
    await assert.rejects(c.vmm.start(c.spec, soon(), onSpawn), /not stored/);
    await nothingIn(c.vmm, c.root);
  });

  test(`${kind}: a missing disk and a bad command line are faults before anything starts`, async () => {
    await using b = await bench(kind);
    await assert.rejects(b.start({ kernel: join(b.root, 'none') }), fault('host', /its kernel cannot be opened/));
    const disks = [{ id: 'ws_2', path: join(b.root, 'none'), read_only: true }];
    await assert.rejects(b.start({ disks }), fault('host', /its disk ws_2 cannot be opened/));
    await assert.rejects(
      b.start({ cmdline: ['x'.repeat(2048)] }),
      fault('invalid', new RegExp(`longer than ${says.longest} bytes`)),
    );
  });

  test(`${kind}: a second start of a living VMM is refused and does it no harm`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    await assert.rejects(b.start(), fault('bad_state', new RegExp(`still runs as process ${machine.proc.pid}`)));
    assert.equal(await echoed(await machine.openControl(soon()), 'still here'), 'still here');
  });

  test(`${kind}: sockets that a dead VMM left are no obstacle`, async () => {
    await using b = await bench(kind);
    const first = await b.start();
    await first.release();
    process.kill(first.proc.pid, 'SIGKILL');
    await poll('its end', 5000, async () => ((await isAlive(first.proc)) ? undefined : true));
    assert.ok((await sockets(b.spec.dir)).length > 0, 'nothing was left: this test shows nothing');
    const second = await b.start();
    assert.equal(await echoed(await second.openControl(soon()), 'new'), 'new');
  });

  test(`${kind}: a directory whose path is longer than a socket address works`, async () => {
    await using b = await bench(kind, {}, { dir: `${'long-'.repeat(30)}${ID}` });
    const machine = await b.start();
    assert.equal(await echoed(await machine.openControl(soon()), 'far'), 'far');
    assert.equal((await b.vmm.find(join(b.root, 'run')))[0]?.vm_id, ID);
  });

  test(`${kind}: pause and resume`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    assert.equal(await machine.paused(), false);
    await machine.pause();
    assert.equal(await machine.paused(), true);
    await machine.resume();
    assert.equal(await machine.paused(), false);
  });

  test(`${kind}: its own user has nothing but what it was given`, {
    skip: process.getuid?.() !== 0 && 'needs root',
  }, async () => {
    await using b = await bench(kind);
    if (kind === 'firecracker' && (await kvmIsRoots())) {
      await assert.rejects(b.start({ uid: 64_123 }), fault('host', /\/dev\/kvm is for root alone/));
      await nothingIn(b.vmm, b.root);
      return;
    }
    const machine = await b.start({ uid: 64_123 });
    const status = await readFile(`/proc/${machine.proc.pid}/status`, 'utf8');
    assert.match(status, /^Uid:\t64123\t64123\t64123\t64123$/m);
    assert.match(status, /^Gid:\t64123\t64123\t64123\t64123$/m);
    assert.match(status, kind === 'qemu' ? /^Groups:\s*$/m : /^Groups:\s*(\d+\s*)?$/m);
    assert.match(status, /^NoNewPrivs:\t1$/m);
    assert.equal(await echoed(await machine.openControl(soon()), 'hi'), 'hi');
  });

  test(`${kind}: the VMM sees none of our environment`, async () => {
    process.env.NEXUS_TEST_SECRET = 'secret';
    await using b = await bench(kind);
    const machine = await b.start();
    const environ = await readFile(`/proc/${machine.proc.pid}/environ`, 'utf8');
    assert.ok(environ.includes('PATH=') && !environ.includes('secret'));
  });

  test(`${kind}: a signal that the VMM ignores is followed by one it cannot`, async () => {
    await using b = await bench(kind, { STUBBORN: '1' });
    const machine = await b.start();
    await machine.signal('SIGTERM');
    const raced = await Promise.race([machine.ended, sleep(200, 'alive')]);
    assert.equal(raced, 'alive');
    await machine.signal('SIGKILL');
    assert.equal((await machine.ended).signal, 'SIGKILL');
  });

  test(`${kind}: a stream that its reader destroys at once does not block the next`, async () => {
    await using b = await bench(kind);
    const machine = await b.start();
    const streams = await Promise.all(
      Array.from({ length: 60 }, async () => (await machine.openControl(soon())).destroy()),
    );
    assert.equal(streams.length, 60);
    const last = await machine.openControl(soon());
    assert.equal(await echoed(last, 'last'), 'last');
    last.end();
    await once(last, 'close');
  });
}
