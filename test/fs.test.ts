/** Files of a really booted VM, through the door and on the command line. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { execResult } from '../src/client/exec.ts';
import { Unreachable } from '../src/client/transport.ts';
import { poll } from '../src/lib/deadline.ts';
import { runAny } from '../src/lib/proc.ts';
import { rejects } from './kit/behave.ts';
import { ask } from './kit/door.ts';
import { REPO, type World, world } from './kit/world.ts';

const MIB = 1024 * 1024;
const vm = 'box';

/** For its first boot. */
const GIVEN = {
  files: [
    { path: '/opt/given/of-nobody', content: 'text\n', mode: '0600', uid: 65_534, gid: 65_534 },
    {
      path: '/usr/local/bin/hello',
      bytes_base64: Buffer.from('#!/bin/sh\necho hello\n').toString('base64'),
      mode: '0755',
    },
  ],
  env: { GIVEN: `it's "$HOME"\n` },
  first_boot: '#!/usr/bin/perl -w\nopen(my $f, ">>", "/root/set-up"); print $f "$< $ENV{HOME} $ENV{GIVEN}", `hello`;\n',
};

let w: World;
before(async () => {
  w = await world({ qemu: 'real', seed: 'booted' });
  await w.client.vm.create({ name: vm, memory_mib: 512, ...GIVEN });
  await w.client.vm.start({ vm });
});
after(async () => {
  await w.client.vm.delete({ vm });
  await w[Symbol.asyncDispose]();
});

const sh = async (script: string): Promise<string> => {
  const { stdout, stderr, exit_code } = await execResult(w.client.exec.run({ vm, argv: ['sh', '-c', script] }));
  assert.equal(exit_code, 0, `${script}: ${stderr}`);
  return stdout.toString();
};

const put = (path: string, data: string | Buffer, options = {}) =>
  w.client.fs.write({ vm, path, ...options }, { body: Buffer.from(data) });

const take = async (path: string, range = {}): Promise<Buffer> =>
  Buffer.concat(await Array.fromAsync(await w.client.fs.read({ vm, path, ...range })));

const ctl = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await w.ctl(...args);
  assert.equal(code, 0, stderr);
  return stdout;
};

/** nexusctl with something on its standard input. */
const piped = (script: string) =>
  runAny(['sh', '-c', script], {
    env: {
      ...process.env,
      NEXUS_SOCKET: w.socket,
      CTL: `${process.execPath} ${join(REPO, 'src/main.ts')} nexusctl`,
    },
    timeout_ms: 120_000,
  });

test('what it was given for its first boot is there, for logins too, and only then', { timeout: 300_000 }, async () => {
  const provision = async () => (await w.client.vm.get({ vm })).provision;
  assert.deepEqual([(await provision())?.state, (await provision())?.error], ['done', null]);
  assert.equal(
    await sh('stat -c "%u:%g %a" /opt/given/of-nobody; cat /opt/given/of-nobody'),
    '65534:65534 600\ntext\n',
  );
  const said = `0 /root it's "$HOME"\nhello\n`;
  assert.equal(await sh('cat /root/set-up'), said);
  assert.equal(await sh('printf %s "$GIVEN"; env -i sh -lc \'printf %s "$GIVEN"\''), GIVEN.env.GIVEN.repeat(2));
  assert.equal(await sh('ls /tmp; ls /dev/shm'), '', 'the script leaves nothing');
  await sh('echo changed >/opt/given/of-nobody');
  await w.client.vm.restart({ vm });
  assert.equal(
    await sh('cat /opt/given/of-nobody /root/set-up; printf %s "$GIVEN"'),
    `changed\n${said}${GIVEN.env.GIVEN}`,
  );
});

test('each operation does what the guest itself would see', { timeout: 300_000 }, async () => {
  const path = '/srv/dir/fïle';
  await w.client.fs.mkdir({ vm, path: '/srv/dir', mode: '1770', uid: 7, gid: 8 });
  const bytes = randomBytes(3 * MIB + 17);
  const written = await put(path, bytes, { mode: '0640', uid: 1000, gid: 100 });
  assert.deepEqual([written.bytes, written.entry.type, written.entry.mode], [bytes.length, 'file', '0640']);
  assert.equal(
    await sh('cd /srv/dir; stat -c "%a %u %g %s" . fïle; sha256sum <fïle'),
    `1770 7 8 4096\n640 1000 100 ${bytes.length}\n${createHash('sha256').update(bytes).digest('hex')}  -\n`,
  );
  const download = await w.client.fs.read({ vm, path });
  assert.deepEqual([download.head.etag, download.length], [written.entry.etag, bytes.length]);
  assert.ok(Buffer.concat(await Array.fromAsync(download)).equals(bytes));
  assert.ok((await take(path, { offset_bytes: MIB, length_bytes: 5 })).equals(bytes.subarray(MIB, MIB + 5)));
  await put(path, 'new');
  await put(path, '+more', { append: true });
  await put(path, 'N', { offset_bytes: 0 });
  assert.equal(await sh('cat /srv/dir/fïle; stat -c " %a %u" /srv/dir/fïle'), 'New+more 640 1000\n');
  await sh('cd /srv/dir; ln -s /etc/hostname link; mkfifo fifo; printf x >"$(printf \'a\\377b\')"');
  const entries = (await Array.fromAsync(w.client.fs.list({ vm, path: '/srv/dir' }))).map(m => m.entry);
  assert.deepEqual(entries.map(e => [e.name, e.type, e.target, e.name_base64]).sort(), [
    ['a\ufffdb', 'file', null, 'Yf9i'],
    ['fifo', 'fifo', null, undefined],
    ['fïle', 'file', null, undefined],
    ['link', 'link', '/etc/hostname', undefined],
  ]);
  assert.equal((await w.client.fs.stat({ vm, path: '/srv/dir/link', follow: true })).type, 'file');
  await w.client.fs.chmod({ vm, path, mode: '4711', uid: 5 });
  await w.client.fs.rename({ vm, path, new_path: '/srv/dir/new' });
  assert.equal(await sh('stat -c "%a %u %g" /srv/dir/new'), '4711 5 100\n');
  await w.client.fs.remove({ vm, path: '/srv/dir/link' });
  await w.client.fs.remove({ vm, path: '/srv/dir', recursive: true });
  assert.equal(await sh('ls /srv; cat /etc/hostname | wc -l'), '1\n');
  assert.match((await take('/proc/version')).toString(), /^Linux version/, 'a file without a length');
});

test('what the guest refuses is told by its reason, and nothing is half done', { timeout: 300_000 }, async () => {
  await sh(
    'mkdir -p /srv/full; mount -t tmpfs -o size=2m none /srv/full; echo old >/srv/full/file; ln -s loop /srv/loop',
  );
  const full = await rejects(
    put('/srv/full/file', randomBytes(4 * MIB)),
    'guest',
    /'\/srv\/full\/file': .*disk is full/,
  );
  assert.equal(full.reason, 'ENOSPC');
  assert.equal(await sh('cat /srv/full/file; ls -A /srv/full'), 'old\nfile\n', 'the old file is whole and alone');
  await sh('mount -o remount,ro /srv/full');
  assert.equal((await rejects(put('/srv/full/file', 'x'), 'guest', /read-only/)).reason, 'EROFS');
  await sh('umount /srv/full');
  await rejects(take('/srv/no'), 'not_found', /'\/srv\/no': there is no such file/);
  await rejects(take('/srv'), 'invalid', /it is a directory/);
  await rejects(take('/dev/vda'), 'invalid', /not a regular file/);
  await rejects(put('/srv/loop', 'x'), 'invalid', /too many links/);
  await rejects(put('/srv/../..', 'x'), 'invalid', /it is a directory/);
  await rejects(w.client.fs.remove({ vm, path: '/srv/full' }), 'invalid', /it is a directory/);
  for (const path of ['/', '/srv/..', '/srv/../', '/srv/.'])
    await rejects(w.client.fs.remove({ vm, path, recursive: true }), 'invalid');
  await rejects(w.client.fs.remove({ vm, path: '/proc/1/status' }), 'guest', /does not permit/);
  await rejects(
    w.client.fs.rename({ vm, path: '/srv/loop', new_path: '/dev/shm/loop' }),
    'invalid',
    /another file system/,
  );
  await rejects(w.client.fs.mkdir({ vm, path: '/srv' }), 'exists');
  await rejects(w.client.fs.chmod({ vm, path: '/srv' }), 'invalid', /give mode, uid, gid or modified_at_ms/);
  const bad = (args: Record<string, unknown>) => w.client.call('fs.stat', { vm, ...args });
  for (const path of ['srv', '', '/a\0b', `/${'ü'.repeat(2048)}`, 7]) await rejects(bad({ path }), 'invalid', /path/);
  await rejects(bad({ path: `/${'ü'.repeat(2047)}` }), 'invalid', /too long/);
  await rejects(put('/srv/x', 'x', { append: true, offset_bytes: 0 }), 'invalid', /exclude each other/);
  await rejects(put('/srv/x', 'x', { mode: '999' }), 'invalid', /octal/);
  await rejects(w.client.fs.stat({ vm: 'nobody', path: '/' }), 'not_found', /no VM 'nobody'/);
  const { status, headers } = await ask(w.socket, { path: `/v1/vms/${vm}/fs/read?path=/no` });
  assert.deepEqual([status, headers['content-type']], [404, 'application/problem+json; charset=utf-8']);
  assert.equal(await sh('ls -A /srv; rm -rf /srv/loop /srv/full'), 'full\nloop\n');
});

test('nexusctl fs: what people type', { timeout: 300_000 }, async () => {
  const { code, stderr } = await piped(`printf 'two\\nlines\\n' | $CTL fs write ${vm} /srv/a.txt --mode 600`);
  assert.deepEqual([code, stderr], [0, "Wrote 10 B: file '/srv/a.txt'.\n"]);
  await piped(`echo three | $CTL fs write ${vm} /srv/a.txt --append`);
  assert.equal(await ctl('fs', 'cat', vm, '/srv/a.txt'), 'two\nlines\nthree\n');
  assert.equal(await ctl('fs', 'cat', vm, '/srv/a.txt', '--offset', '4', '--length', '5'), 'lines');
  assert.match(await ctl('fs', 'stat', vm, '/srv/a.txt'), /^name: +a\.txt\ntype: +file\nsize: +16 B\nmode: +0600\n/);
  await ctl('fs', 'mkdir', '-p', vm, '/srv/d/e');
  await ctl('fs', 'mv', vm, '/srv/a.txt', '/srv/d/b.txt');
  await ctl('fs', 'chmod', vm, '/srv/d/b.txt', '755');
  await sh('cd /srv/d; ln -s b.txt l; touch "$(printf \'\\033[2Jx\')"');
  const listed = await ctl('fs', 'ls', vm, '/srv/d');
  assert.match(listed, /^file +0644 .*x\nfile +0755 +0:0 +16 B .* b\.txt\ndirectory .* e\nlink .* l -> b\.txt\n$/);
  assert.ok(!listed.includes('\u001b'), 'names reach no terminal as they are');
  assert.equal(
    JSON.parse((await ctl('fs', 'ls', '--json', vm, '/srv/d/e/..')).split('\n')[0] ?? '').type.length > 0,
    true,
  );
  assert.equal((await w.ctl('fs', 'rm', vm, '/srv/d')).code, 2);
  await ctl('fs', 'rm', '-r', vm, '/srv/d');
  const missing = await w.ctl('fs', 'cat', vm, '/srv/d');
  assert.deepEqual(
    [missing.code, missing.stderr],
    [4, "error: Cannot read '/srv/d': there is no such file or directory.\n"],
  );
});

test('a watch tells what a command does; a tree goes in and out, with owners and holes', {
  timeout: 300_000,
}, async () => {
  await sh('mkdir -p /srv/w/old');
  const seen: string[] = [];
  const watching = Promise.withResolvers<void>();
  const over = (async () => {
    for await (const m of w.client.fs.watch({ vm, path: '/srv/w', recursive: true })) {
      if (m.type === 'watching') watching.resolve();
      else if (m.type !== 'overflow') seen.push(`${m.type} ${m.path}${m.type === 'moved' ? ` ${m.new_path}` : ''}`);
    }
  })();
  await watching.promise;
  await sh('cd /srv/w; mkdir new; sleep 0.5; echo x >new/file; mv old older; rm -r /srv/w');
  await over;
  for (const line of [
    'created /srv/w/new',
    'changed /srv/w/new/file',
    'moved /srv/w/old /srv/w/older',
    'removed /srv/w',
  ])
    assert.ok(seen.includes(line), `${line} is not among ${seen.join(', ')}`);
  await rejects(Array.fromAsync(w.client.fs.watch({ vm, path: '/srv/no' })), 'not_found');

  await sh(`mkdir -p /srv/t/sub; cd /srv/t; echo a >sub/a; ln sub/a b; ln -s /etc/passwd l; chown -h 7:8 l b; chmod 4711 b
    truncate -s 1G hole; echo end >>hole; setfattr -n user.k -v v b 2>/dev/null; mknod n c 1 3; touch -d @1.5 sub`);
  const look = (dir: string) =>
    sh(`cd ${dir}; find . ! -type c -printf '%P %y %m %U:%G %s %n %T@ %l\n' | sort; sha256sum sub/a b`);
  const archive = Buffer.concat(await Array.fromAsync(await w.client.fs.export({ vm, path: '/srv/t' })));
  assert.ok(archive.length < MIB, `a hole of a GiB was sent: ${archive.length} bytes`);
  const taken = await w.client.fs.import({ vm, path: '/srv/t2' }, { body: archive });
  assert.deepEqual(taken, { entries: 6, bytes: 1024 * MIB + 6 });
  assert.equal(await look('/srv/t2'), await look('/srv/t'));
  assert.equal(await sh('du -m /srv/t2/hole | cut -f1; ls /srv/t2/n 2>&1 | wc -l; rm -r /srv/t /srv/t2'), '1\n1\n');
  await rejects(
    w.client.fs.import({ vm, path: '/srv/t3' }, { body: Buffer.alloc(4096, 'x') }),
    'invalid',
    /no tar archive/,
  );

  const dir = await mkdtemp(join(tmpdir(), 'nexus-fs-'));
  try {
    await ctl('cp', `${vm}:/etc/apt`, dir);
    await ctl('cp', join(dir, 'apt'), `${vm}:/srv/apt`);
    assert.equal(
      await sh(
        'cd /etc/apt; diff -r . /srv/apt && find . -printf "%P %m %T@\n" | sort >/tmp/1; cd /srv/apt; find . -printf "%P %m %T@\n" | sort | diff - /tmp/1; rm -r /srv/apt',
      ),
      '',
    );
    const root = await w.ctl('cp', `${vm}:/proc/.`, join(dir, 'proc'));
    assert.deepEqual([root.code, await readdir(join(dir, 'proc'))], [0, []], 'what the kernel makes up is left out');
    const full = await piped(
      `head -c 4M /dev/urandom >${dir}/big; $CTL exec ${vm} -- sh -c 'mkdir /srv/f; mount -t tmpfs -o size=2m none /srv/f'; $CTL cp ${dir}/big ${vm}:/srv/f/`,
    );
    assert.deepEqual([full.code, full.stderr], [10, "error: Cannot write '/srv/f/big': the guest's disk is full.\n"]);
    const tree = await w.ctl('cp', dir, `${vm}:/srv/f`);
    assert.deepEqual(
      [tree.code, /unpack into '\/srv\/f\/[^']+': the guest's disk is full/.test(tree.stderr)],
      [10, true],
      tree.stderr,
    );
    await sh('umount /srv/f; rmdir /srv/f');
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('large files: many at once, memory that does not grow, and a VM that ends in the middle', {
  timeout: 600_000,
}, async t => {
  const proc = `/proc/${w.daemon().pid}`;
  const peak = async () => Number(/VmHWM:\s+(\d+) kB/.exec(await readFile(`${proc}/status`, 'utf8'))?.[1]) / 1024;
  const part = randomBytes(MIB);
  const pump = async (mib: number) => {
    await writeFile(`${proc}/clear_refs`, '5'); // the peak begins anew: proc(5)
    const begun = performance.now();
    const { bytes } = await w.client.fs.write(
      { vm, path: '/dev/shm/big' },
      { body: Readable.from(Array(mib).fill(part)) },
    );
    const middle = performance.now();
    let got = 0;
    for await (const chunk of await w.client.fs.read({ vm, path: '/dev/shm/big' })) got += chunk.length;
    assert.deepEqual([bytes, got], [mib * MIB, mib * MIB]);
    const [up, down] = [middle - begun, performance.now() - middle].map(ms => Math.round((mib * 1000) / ms));
    t.diagnostic(`${mib} MiB: in ${up} MiB/s, out ${down} MiB/s, the daemon's peak ${Math.round(await peak())} MiB`);
  };
  await pump(32);
  const small = await peak();
  await pump(128);
  assert.ok((await peak()) - small < 64, 'memory follows the size of the file');
  const names = Array.from({ length: 130 }, (_, i) => `/dev/shm/n${i}`);
  await Promise.all(names.map(path => put(path, part.subarray(0, 100_000))));
  const sizes = await Promise.all(names.map(async path => (await take(path)).length));
  assert.ok(sizes.every(size => size === 100_000));

  const dir = await mkdtemp(join(tmpdir(), 'nexus-fs-'));
  try {
    await piped(`head -c 24M /dev/urandom >${dir}/big`);
    const copying = w.ctl('cp', join(dir, 'big'), `${vm}:/dev/shm/copy`);
    await poll('the copy', 60_000, async () => (await sh('ls -A /dev/shm')).includes('.nexus-cp') || undefined, {
      every_ms: 50,
    });
    await w.kill();
    await w.start();
    assert.deepEqual(await copying, { code: 0, signal: null, stdout: '', stderr: '' });
    assert.equal(await sh('sha256sum </dev/shm/copy'), (await piped(`sha256sum <${dir}/big`)).stdout);
  } finally {
    await rm(dir, { recursive: true });
  }

  const stalled = await w.client.fs.read({ vm, path: '/dev/shm/big' });
  const chunks = stalled[Symbol.asyncIterator]();
  await chunks.next();
  const endless = new Readable({ read() {} });
  endless.push(part);
  const writing = w.client.fs.write({ vm, path: '/srv/never' }, { body: endless });
  writing.catch(() => {});
  const watch = w.client.fs.watch({ vm, path: '/opt' });
  await watch.next();
  const change = watch.next();
  change.catch(() => {});
  await w.client.vm.stop({ vm, force: true });
  await assert.rejects(
    (async () => {
      while ((await chunks.next()).done !== true);
    })(),
    (e: unknown) => e instanceof Unreachable,
    'a part is never taken for the whole',
  );
  // By its end, or by that of its connection, whichever is seen first.
  await assert.rejects(writing, (e: unknown) => e instanceof Fault && ['bad_state', 'guest'].includes(e.code));
  await assert.rejects(change, (e: unknown) => e instanceof Fault && ['bad_state', 'guest'].includes(e.code));
  endless.destroy();
  await rejects(
    w.client.fs.stat({ vm, path: '/' }),
    'bad_state',
    /^Cannot reach the files of VM 'box': it (is stopped|has just ended)\.$/,
  );
  assert.ok(!/"level":50/.test(await w.log()), await w.log());
});
