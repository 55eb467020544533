/** Terminals through the door: several who look and type, who stall and leave; nexusctl on a terminal of its own. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import type { OpArgs } from '../src/api/ops.ts';
import { poll, sleep } from '../src/lib/deadline.ts';
import { run } from '../src/lib/proc.ts';
import { descriptors } from './kit/audit.ts';
import { boxed, rejects } from './kit/behave.ts';
import { type Desk, desk, NO_TMUX, type Pane } from './kit/tmux.ts';
import { openView, type View } from './kit/view.ts';

const { w } = await boxed();

const view = (args: Partial<OpArgs<'terminal.open'>> = {}): Promise<View> => openView(w, { vm: 'box', ...args });

const item = async (exec: string) => (await w.client.exec.list({ vm: 'box' })).find(one => one.exec === exec);
const endSession = async (session: string) => {
  await using v = await view({ session });
  await w.client.exec.signal({ vm: 'box', exec: v.opened.exec, signal: 'KILL' });
  await v.exit;
};

test('a session is made once; each sees what all type, whoever comes sees what was', { timeout: 60_000 }, async () => {
  await using one = await view();
  assert.deepEqual([one.opened.made, one.opened.session], [true, 'main']);
  await one.type("PS1=; stty size; echo $((40+2)); echo 'tty' $(tty)\n");
  await one.see('24 80\r\n42\r\ntty /dev/pts/');
  await using two = await view({ cols: 132, rows: 43 });
  assert.deepEqual([two.opened.exec, two.opened.made], [one.opened.exec, false]);
  await two.see('42\r\ntty /dev/pts/');
  await two.type('stty size\n');
  for (const v of [one, two]) await v.see('43 132\r\n');
  await one.type('stty size\n'); // who typed last says how large it is
  for (const v of [one, two]) await v.see('24 80\r\n');
  await two.talk.send({ type: 'resize', cols: 65_535, rows: 65_535 });
  await two.type('stty size\n');
  for (const v of [one, two]) await v.see('65535 65535\r\n');
  await using looker = await view({ read_only: true });
  await looker.type('exit 1\n');
  await looker.talk.send({ type: 'resize', cols: 10, rows: 10 });
  await two.type('echo still; stty size\n');
  for (const v of [one, two, looker]) await v.see('still\r\n65535 65535\r\n');
  const other = await view({ session: 'other' });
  assert.notEqual(other.opened.exec, one.opened.exec);
  await other.type('exit 6\n');
  assert.equal((await other.exit)?.exit_code, 6);
  await rejects(view({ session: 'other', read_only: true }), 'not_found', /no session 'other' in VM 'box'/);
  await one.type('exit 7\n');
  for (const v of [one, two, looker]) assert.equal((await v.exit)?.exit_code, 7);
  await using fresh = await view();
  assert.ok(fresh.opened.made, 'its name was free again');
  assert.ok(!fresh.text().includes('42'));
  await endSession('main');
});

test('what cannot be attached to says why', { timeout: 60_000 }, async () => {
  await rejects(view({ session: 'a/b' }), 'invalid');
  await rejects(view({ session: 'main', exec: 'exec_x' }), 'invalid', /not both/);
  await rejects(view({ exec: 'exec_x' }), 'not_found');
  await rejects(view({ user: 'nobody-at-all' }), 'invalid', /no such user/i);
  const piped = w.client.exec.run({ vm: 'box', argv: ['sleep', '600'], on_disconnect: 'kill' });
  const first = (await piped.next()).value;
  assert.ok(first?.type === 'started');
  await rejects(view({ exec: first.exec }), 'bad_state', /has no terminal/);
  await w.client.exec.signal({ vm: 'box', exec: first.exec, signal: 'KILL' });
  await piped.return();
  await w.client.vm.create({ name: 'off', memory_mib: 64 });
  await rejects(w.client.terminal.open({ vm: 'off' }), 'bad_state');
  await w.client.vm.delete({ vm: 'off' });
});

test('the daemon is killed and started again: the session is there, with what it said meanwhile', {
  timeout: 120_000,
}, async () => {
  const one = await view();
  await one.type('PS1=; (sleep 2; echo mean""while) & echo be""fore\n');
  await one.see('before\r\n');
  await w.kill();
  await assert.rejects(one.exit);
  await w.start();
  await using two = await view();
  assert.deepEqual([two.opened.made, two.opened.exec], [false, one.opened.exec]);
  await two.see('before\r\n');
  await two.see('meanwhile\r\n');
  await two.type('echo al""ive\n');
  await two.see('alive\r\n');
  await w.stop();
  await w.start();
  await using three = await view();
  await three.see('alive\r\n');
  await endSession('main');
});

test('a viewer that takes nothing holds nobody for long, and is told of its gap', { timeout: 120_000 }, async () => {
  const one = await view();
  const stalled = await w.client.terminal.open({ vm: 'box' }); // never read
  await one.type('stty -onlcr; seq 1000000 2999999; echo do""ne\n');
  await poll('the end of the output', 90_000, () => one.text().includes('done\n') || undefined);
  assert.equal(one.gaps(), 0);
  const lines = one.text().split('\n');
  const at = lines.findIndex(line => line.endsWith('1000000'));
  assert.ok(
    lines.slice(at + 1, at + 2_000_000).every((line, n) => line === String(1_000_001 + n)),
    'not a byte is lost',
  );
  let [missed, seen] = [0, 0];
  for await (const piece of stalled) {
    if (piece instanceof Uint8Array) seen += piece.length;
    else if (piece.type === 'gap') missed += piece.bytes;
    if (missed > 0 && Buffer.isBuffer(piece) && piece.includes('done')) break;
  }
  assert.ok(missed > 5_000_000, `${missed} missed, ${seen} seen`);
  await using late = await view();
  await late.see('done');
  assert.match(late.text().slice(0, 20), /^\d{7}\n/, 'what was is shown from the beginning of a line');
  assert.ok(late.text().length <= 256 * 1024);
  one.talk.close();
  await endSession('main');
});

test('bytes that are typed arrive as they are; a program that reads none holds nobody else', {
  timeout: 60_000,
}, async () => {
  await using one = await view();
  await one.type('PS1=; stty raw -echo; echo re""ady; sleep 600\n');
  await one.see('ready');
  await using two = await view();
  let sent = 0;
  const flood = (async () => {
    for (let i = 0; i < 100; i++) {
      await two.type('x'.repeat(65_536));
      sent++;
    }
  })();
  await sleep(500);
  assert.ok(sent < 60, `${sent} of 100 pieces were taken by nobody`);
  const again = await view(); // what is held is that viewer's alone
  again.talk.close();
  assert.equal((await item(one.opened.exec))?.running, true);
  two.talk.close();
  await flood;
  await endSession('main');
});

test('viewers leave nothing in the daemon', { timeout: 120_000 }, async () => {
  await using keep = await view();
  const round = () =>
    Promise.all(
      Array.from({ length: 12 }, async () => {
        const v = await view();
        await v.type(' ');
        v.talk.close();
        await v.talk.over;
      }),
    );
  await round();
  await sleep(300);
  const before = await descriptors(w);
  for (let i = 0; i < 15; i++) await round(); // 180 viewers: more than streams
  await poll('the descriptors', 10_000, async () => (await descriptors(w)) <= before + 5 || undefined);
  assert.ok(!/Warning|"level":50/.test(await w.log()), await w.log());
  await w.client.exec.signal({ vm: 'box', exec: keep.opened.exec, signal: 'KILL' });
});

const MAIN = join(import.meta.dirname, '../src/main.ts');
const sit = (): Promise<Desk> => desk({ NEXUS_SOCKET: w.socket, CTL: `${process.execPath} ${MAIN} nexusctl` });

/** The settings of a pane's terminal. */
const settings = async (pane: Pane): Promise<string> =>
  (await run(['stty', '-F', await pane.ask('pane_tty'), '-g'])).stdout.trim();

test('nexusctl attach: keys, size, leaving, coming back, its exit code', {
  skip: NO_TMUX,
  timeout: 180_000,
}, async () => {
  await using d = await sit();
  const pane = await d.open();
  await pane.see(/desk\$$/m);
  const before = await settings(pane);
  await pane.type('$CTL attach box; echo code $?\n');
  await pane.see(/session main of VM box; Ctrl-P Ctrl-Q leaves it/);
  await pane.type("PS1='guest# '; clear; stty size\n");
  await pane.see(/^30 100\nguest#$/m);
  await pane.resize(120, 40);
  await sleep(300);
  await pane.type('clear; stty size\n');
  await pane.see(/^40 120\nguest#$/m);
  await pane.type('sleep 600\n');
  await pane.keys('C-c');
  await pane.type('echo interr""upted\n');
  await pane.see(/^interrupted$/m);
  // in the middle of a sequence, on the other screen, without a cursor
  await pane.type("printf '\\033[?1049h\\033[?25l\\033[?2004h\\033[2J\\033[Hfull screen\\033[3'\n");
  await pane.see(/^full screen/m);
  assert.equal(await pane.ask('alternate_on'), '1');
  await pane.keys('C-p', 'C-q');
  await pane.see(/Left; it goes on, and nexusctl attach comes back to it\.\ncode 0\ndesk\$$/m);
  assert.deepEqual([await pane.ask('alternate_on'), await pane.ask('cursor_flag')], ['0', '1']);
  assert.equal(await settings(pane), before);
  await pane.type('clear; $CTL attach box; echo code $?\n');
  await pane.see(/full screen/);
  await pane.type('printf \'\\033[0m\\033[?1049l\\033[?25h\\033[?2004l\'; clear; echo ba""ck\n');
  await pane.see(/^back\nguest#$/m);
  await pane.type('exit 9\n');
  await pane.see(/code 9\ndesk\$$/m);
  assert.equal(await settings(pane), before);
});

test('nexusctl on a terminal gives it back whatever ends it', { skip: NO_TMUX, timeout: 240_000 }, async () => {
  await using d = await sit();
  const [pane, second] = [await d.open(), await d.open({ cols: 60, rows: 20 })];
  await pane.see(/desk\$$/m);
  const before = await settings(pane);
  const attach = async (command = 'attach box --session work') => {
    await pane.type(`clear; $CTL ${command}; echo code $?\n`);
    await pane.see(/leaves it|hex\$/);
    await poll('raw mode', 30_000, async () => (await settings(pane)) !== before || undefined);
  };
  const client = async () => {
    const shell = await pane.ask('pane_pid');
    return Number((await readFile(`/proc/${shell}/task/${shell}/children`, 'utf8')).trim().split(' ').at(-1));
  };
  for (const [signal, code] of [
    ['SIGTERM', 143],
    ['SIGHUP', 129],
    ['SIGINT', 130],
  ] as const) {
    await attach();
    process.kill(await client(), signal);
    await pane.see(new RegExp(`^code ${code}\\ndesk`, 'm'));
    assert.equal(await settings(pane), before, signal);
  }
  await attach();
  await second.type('$CTL attach box --session work --read-only; echo code $?\n');
  await second.see(/leaves it/);
  await pane.type("echo for b''oth\n");
  await second.see(/^for both$/m);
  await w.kill();
  await pane.see(/error: The connection to the daemon .* was lost\.\n(hint.*\n)?code 69\ndesk/m);
  await second.see(/code 69/);
  assert.equal(await settings(pane), before, 'the daemon is gone');
  await w.start();
  await pane.type("clear; $CTL exec -i -t box -e A=b -- sh -c 'stty size; read x; echo $A $x; exit 5'; echo code $?\n");
  await pane.see(/^30 100$/m);
  await pane.type('typed\n');
  await pane.see(/^b typed\ncode 5\ndesk/m);
  await pane.type('clear; $CTL exec -i -t box -- /no/such; echo code $?\n');
  await pane.see(/no such program\.\n(hint.*\n)?code 127/m);
  await pane.type('clear; echo x | $CTL exec -i -t box -- cat; echo code $?\n');
  await pane.see(/are no terminal\.\n(hint.*\n)?code 125/m);
  await pane.type('clear; $CTL exec -i -t box -- sh -c "echo here; sleep 600"; echo code $?\n');
  await pane.see(/^here$/m);
  await pane.keys('C-p');
  await pane.keys('C-q');
  const left = /nexusctl attach box --exec (exec_\w{26}) comes back to it\.\s+code 0/.exec(
    await pane.see(/code 0\ndesk/),
  );
  assert.ok(left?.[1]);
  await pane.type(`clear; $CTL attach box --exec ${left[1]}; echo code $?\n`);
  await pane.see(/^here$/m);
  await pane.keys('C-c');
  await pane.see(/^\^Ccode 130\ndesk/m);
  assert.equal(await settings(pane), before);
  const tty = await w.ctl('exec', '-t', 'box', '--', 'sh', '-c', 'stty size; echo err >&2; exit 4');
  assert.deepEqual([tty.code, tty.stdout, tty.stderr], [4, '24 80\r\nerr\r\n', '']);
  await attach();
  await w.client.vm.stop({ vm: 'box', force: true });
  await pane.see(/error: .*\n(?:.*\n)?(hint.*\n)?code \d+\ndesk/m);
  assert.equal(await settings(pane), before, 'the VM is gone');
});
