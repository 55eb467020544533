/** A person in a Debian that really runs: vim, htop and tmux in `nexusctl attach`, a server's port, and the operations beneath. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { WebSocket } from 'ws';
import { execResult } from '../src/client/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { testRootfs } from './kit/assets.ts';
import { type Desk, desk, NO_TMUX } from './kit/tmux.ts';
import { type World, world } from './kit/world.ts';

const MAIN = join(import.meta.dirname, '../src/main.ts');
let w: World;
let d: Desk;
before(
  async () => {
    w = await world({ qemu: 'real', seed: 'booted' });
    const done = async (job: { id: string }) => {
      const end = await w.client.job.wait({ job: job.id, timeout_ms: 600_000 });
      assert.equal(end.state, 'succeeded', end.error?.detail ?? '');
    };
    const { tar } = await testRootfs(['htop', 'tmux', 'vim']);
    await w.client.rootfs.download({ from: tar, distro: 'tools', version: '12' }).then(done);
    await w.client.image.build({ name: 'tools', rootfs: 'tools:12' }).then(done);
    await w.client.vm.create({ name: 'box', image: 'tools', memory_mib: 512 });
    await w.client.vm.start({ vm: 'box' });
    d = await desk({
      NEXUS_SOCKET: w.socket,
      CTL: `${process.execPath} ${MAIN} nexusctl`,
    });
  },
  { timeout: 900_000 },
);
after(async () => {
  await d?.[Symbol.asyncDispose]();
  await w?.[Symbol.asyncDispose]();
});

const sh = (script: string) => execResult(w.client.exec.run({ vm: 'box', argv: ['sh', '-c', script] }));
const cat = async (file: string) => (await sh(`cat ${file}`)).stdout.toString();

test('commands are found again, run once for a key, and have terminals', { timeout: 120_000 }, async () => {
  const abort = new AbortController();
  const asked = {
    vm: 'box',
    argv: ['sh', '-c', 'stty size; read l; stty size; echo "<$l>"; echo run >>/root/runs; exit 3'],
    tty: { cols: 70, rows: 20 },
    idempotency_key: 'one',
  };
  const first = w.client.exec.run(asked, { signal: abort.signal });
  const started = (await first.next()).value;
  assert.ok(started?.type === 'started');
  const { exec } = started;
  assert.equal((await first.next()).value?.type, 'stdout');
  abort.abort(new Error('left'));
  await first.next().catch(() => {});
  const [item] = await w.client.exec.list({ vm: 'box' });
  assert.deepEqual([item?.exec, item?.running, item?.tty, item?.pid], [exec, true, true, started.pid]);
  await w.client.exec.resize({ vm: 'box', exec, cols: 132, rows: 43 });
  await w.client.exec.stdin({ vm: 'box', exec }, { body: Readable.from([Buffer.from('hello\n')]) });
  const seen = await execResult(w.client.exec.attach({ vm: 'box', exec }));
  assert.deepEqual([seen.stdout.toString(), seen.exit_code], ['20 70\r\nhello\r\n43 132\r\n<hello>\r\n', 3]);
  assert.equal((await execResult(w.client.exec.run(asked))).exit_code, 3);
  assert.equal(await cat('/root/runs'), 'run\n');
  await assert.rejects(w.client.exec.run({ ...asked, cwd: '/' }).next(), { code: 'exists' });
});

test('vim, htop and tmux in attach; left and found again, by another daemon too', {
  skip: NO_TMUX,
  timeout: 300_000,
}, async () => {
  const pane = await d.open();
  await pane.see(/desk\$$/m);
  await pane.type('$CTL attach box; echo code $?\n');
  await pane.see(/root@box:~#$/m);
  await pane.type('tty; echo $TERM $0 $SHELL; stty size; vim -Nu NONE /root/poem\n');
  await pane.see(/^~$[\s\S]*"~\/poem" \[New\]/m);
  await pane.type('ifirst line\nsecond line');
  await pane.keys('Escape');
  await pane.type('kyyp:set number\n');
  await pane.see(/^ +1 first line\n +2 first line\n +3 second line\n~/m);
  await pane.resize(90, 25);
  // Vim itself says how large it takes its screen to be; what lies on its last row is its own affair.
  await poll(
    'vim to fill the smaller screen',
    60_000,
    async () => {
      await pane.type(':echo "size" &lines &columns\n');
      await setTimeout(500);
      return /^size 25 90$/m.test(await pane.screen()) || undefined;
    },
    { every_ms: 0 },
  );
  await pane.keys('C-p', 'C-q');
  await pane.see(/Left; it goes on/);
  assert.equal(await pane.ask('alternate_on'), '0');
  await w.kill();
  await w.start();
  await pane.type('clear; $CTL attach box; echo code $?\n');
  await pane.see(/^ +1 first line\n +2 first line\n +3 second line\n~/m);
  await pane.type(':wq\n');
  await pane.see(/root@box:~#$/m);
  assert.equal(await cat('/root/poem'), 'first line\nfirst line\nsecond line\n');

  await pane.type('clear; htop\n');
  await pane.see(/Tasks: \d+.*\n[\s\S]*F10 ?Quit/);
  await pane.keys('F2');
  await pane.see(/Categories/);
  await pane.keys('Escape');
  await pane.keys('F10');
  await pane.see(/root@box:~#$/m);

  await pane.type('clear; tmux\n');
  await pane.see(/\[0\] 0:bash\*/);
  await pane.keys('C-b', '%');
  await pane.type('echo r""ight; tty\n');
  await pane.see(/│.*right/);
  await pane.keys('C-b', 'Left');
  await pane.type('echo l""eft; tmux display -p "#{window_panes} panes"\n');
  await pane.see(/^left +│/m);
  await pane.see(/^2 panes/m);
  await pane.keys('C-b', 'd');
  await pane.see(/\[detached \(from session 0\)\]/);
  await pane.type('tmux attach\n');
  await pane.see(/^left +│/m);
  await pane.keys('C-b', 'd');
  await pane.see(/\[detached[\s\S]*root@box:~#$/m);
  await pane.type('tmux kill-server; exit 7\n');
  await pane.see(/code 7\ndesk\$$/m);
});

test('HTTP and WebSockets of the guest on a port of this host', { timeout: 120_000 }, async () => {
  const program = await readFile(join(import.meta.dirname, 'programs/serve.pl'));
  const perl = w.client.exec.run({ vm: 'box', argv: ['perl', '-'], stdin: 'open', on_disconnect: 'kill' });
  const started = (await perl.next()).value;
  assert.ok(started?.type === 'started');
  await w.client.exec.stdin({ vm: 'box', exec: started.exec }, { body: program });
  assert.equal((await perl.next()).value?.type, 'stdout', 'it listens');
  const child = spawn(process.execPath, [MAIN, 'nexusctl', '--socket', w.socket, 'port', 'box', ':8080'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = await once(child.stdout.setEncoding('utf8'), 'data');
  const port = Number(/^127\.0\.0\.1:(\d+) is port 8080 of VM box$/m.exec(line)?.[1]);
  const get = async (path: string, body?: Buffer) => {
    const req = request({
      port,
      path,
      agent: false,
      ...(body && { method: 'POST', headers: { 'content-length': body.length } }),
    });
    req.end(body);
    const [res] = await once(req, 'response');
    let text = '';
    for await (const chunk of res.setEncoding('utf8')) text += chunk;
    return text;
  };
  assert.equal(await get('/hello'), 'GET /hello 0');
  assert.equal(await get('/up', Buffer.alloc(4_000_000, 'x')), 'POST /up 4000000');
  const all = await Promise.all(Array.from({ length: 20 }, (_, n) => get(`/${n}`)));
  assert.deepEqual(
    all,
    Array.from({ length: 20 }, (_, n) => `GET /${n} 0`),
  );
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
  await once(socket, 'open');
  for (const text of ['hello', 'x'.repeat(100)]) {
    socket.send(text);
    assert.equal(String((await once(socket, 'message'))[0]), text);
  }
  socket.close(1000);
  assert.equal((await once(socket, 'close'))[0], 1000);
  await w.client.exec.signal({ vm: 'box', exec: started.exec, signal: 'KILL' });
  await Array.fromAsync(perl);
  await assert.rejects(w.client.port.open({ vm: 'box', port: 8080 }), { code: 'guest', reason: 'refused' });
  child.kill('SIGINT');
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});

test('a command on this terminal, and a viewer who sees the VM go', { skip: NO_TMUX, timeout: 180_000 }, async () => {
  const pane = await d.open();
  await pane.see(/desk\$$/m);
  await pane.type('clear; $CTL exec -i -t box -- bash -c \'read -p "name? " n; echo "hi $n"; exit 5\'; echo code $?\n');
  await pane.see(/^name\?$/m);
  await pane.type('bob\n');
  await pane.see(/^hi bob\ncode 5\ndesk/m);
  await pane.type('clear; $CTL attach box --session work --user root; echo code $?\n');
  await pane.see(/session work of VM box[\s\S]*root@box:~#$/m);
  const talk = await w.client.terminal.open({ vm: 'box', session: 'work', read_only: true });
  await w.client.vm.stop({ vm: 'box' });
  await pane.see(/code \d+\ndesk\$$/m);
  await Array.fromAsync(talk).catch(() => {});
  await talk.over;
  await w.client.vm.delete({ vm: 'box' });
});
