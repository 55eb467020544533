/** Terminals and ports whose connection to the guest is cut: the real agent, run on this host. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import process from 'node:process';
import { after, before, test } from 'node:test';
import type { Viewer } from '../src/guest/guest.ts';
import type { Asked } from '../src/guest/wire.ts';
import { poll } from '../src/lib/deadline.ts';
import { type Harness, harness } from './kit/harness.ts';

let h: Harness;
let count = 0;
before(async () => {
  h = await harness();
});
after(() => h[Symbol.asyncDispose]());

const soon = () => AbortSignal.timeout(60_000);
const asked = (argv: string[], session?: string): Asked => ({
  id: `exec_${process.pid}_${count++}`,
  ...{ argv, env: {}, stdin: 'none', on_disconnect: 'keep', tty: { cols: 80, rows: 24 }, tail: 65_536 },
  ...(session !== undefined && { session }),
});

const watch = ({ output }: Viewer) => {
  const seen = { text: '', gaps: 0, over: false };
  (async () => {
    for await (const piece of output) {
      if ('gap' in piece) seen.gaps += piece.gap;
      else seen.text += piece.data.toString('latin1');
    }
    seen.over = true;
  })().catch(() => {});
  const until = (what: string) =>
    poll(`${what}; it shows ${seen.text.slice(-200)}`, 30_000, () => seen.text.includes(what) || undefined);
  return { seen, until };
};

test('a terminal goes on over connections that are cut, whole and in order', { timeout: 120_000 }, async () => {
  const viewer = await h.guest.viewTerminal(
    asked(['sh', '-c', 'stty -echo -onlcr; while read l; do echo "<$l>"; done']),
    soon(),
  );
  const { seen, until } = watch(viewer);
  await viewer.keys.write(Buffer.from('first\n'));
  await until('<first>');
  for (let i = 0; i < 10; i++) {
    h.proxy.cut();
    await h.guest.ping(soon());
    await viewer.keys.write(Buffer.from(`line ${i}\n`));
    await until(`<line ${i}>`);
  }
  assert.equal(seen.text.match(/<line \d>/g)?.join(''), Array.from({ length: 10 }, (_, i) => `<line ${i}>`).join(''));
  assert.equal(seen.gaps, 0);
  await h.guest.signalExec(viewer.output.id, 'KILL', soon());
  assert.equal((await viewer.output.result).signal, 'KILL');
  await viewer.keys.write(Buffer.from('late')); // of a command that has ended: no fault
});

test('output that runs while connections are cut has no gap and no byte twice', { timeout: 120_000 }, async () => {
  const parts = 'for i in 10 11 12 13 14; do seq "$i"00000 "$i"99999; sleep 0.1; done'; // lasts longer than a few cuts
  const viewer = await h.guest.viewTerminal(asked(['sh', '-c', `stty -onlcr; ${parts}`]), soon());
  const { seen } = watch(viewer);
  const before = h.proxy.opened;
  const cutting = setInterval(() => h.proxy.cut(), 50);
  try {
    await viewer.output.result;
    await poll('its last byte', 10_000, () => seen.over || undefined);
  } finally {
    clearInterval(cutting);
  }
  assert.equal(seen.gaps, 0);
  assert.ok(h.proxy.opened > before + 2, 'it was cut a few times');
  const lines = seen.text.trimEnd().split('\n');
  assert.equal(lines.length, 500_000);
  assert.ok(lines.every((line, n) => line === String(1_000_000 + n)));
});

test('a session that is asked for again and again on bad connections is one shell', { timeout: 120_000 }, async () => {
  const viewers: Viewer[] = [];
  for (let i = 0; i < 12; i++) {
    const opening = h.guest.viewTerminal(asked([], 'main'), soon());
    if (i % 2 === 0) setImmediate(() => h.proxy.cut()); // while it is asked for
    viewers.push(await opening);
  }
  assert.equal(new Set(viewers.map(v => v.output.id)).size, 1);
  const list = await h.guest.execs(soon());
  assert.equal(list.filter(one => one.session === 'main').length, 1);
  await h.guest.signalExec(viewers[0]?.output.id ?? '', 'KILL', soon());
  for (const viewer of viewers) assert.equal((await viewer.output.result).signal, 'KILL');
});

test('a port whose connection is cut is a reset on both sides', { timeout: 60_000 }, async () => {
  const how = Promise.withResolvers<boolean>();
  const server = createServer(socket => {
    socket.on('error', () => {}).once('close', broken => how.resolve(broken));
    socket.write('hello');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const port = await h.guest.openPort({ port: (server.address() as AddressInfo).port }, soon());
  await assert.rejects(
    (async () => {
      for await (const piece of port) if (String(piece) === 'hello') h.proxy.cut();
    })(),
    { code: 'guest', reason: 'reset' },
  );
  await port.write(Buffer.from('nowhere'));
  assert.equal(await how.promise, true, 'nobody takes it for an end');
  server.close();
});
