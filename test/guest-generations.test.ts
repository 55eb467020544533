/** Agents of other times: one that knows only what generation 1 began with, one that says more than is known, and other generations. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { IncomingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import { join } from 'node:path';
import { test } from 'node:test';
import { z } from 'zod';
import { ExecSpec } from '../src/api/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { FACTS, type Rig, rig, ring, speaker } from './kit/rig.ts';
import { drain } from './kit/stress.ts';
import { fault } from './standin/vmm.ts';

const Exchange = z.object({
  name: z.string(),
  method: z.string(),
  path: z.string(),
  preamble: z.looseObject({ id: z.string(), argv: z.array(z.string()) }).optional(),
  status: z.int(),
  json: z.record(z.string(), z.unknown()).optional(),
  output: z.object({ stdout: z.string(), stderr: z.string(), trailers: z.record(z.string(), z.string()) }).optional(),
});
type Exchange = z.infer<typeof Exchange>;

const { facts, exchanges } = z
  .object({ facts: z.looseObject({ agent_id: z.string() }), exchanges: z.array(Exchange).min(10) })
  .parse(JSON.parse(readFileSync(join(import.meta.dirname, 'vectors', 'generation-1.json'), 'utf8')));

const later = exchanges.at(-1);
const soon = () => AbortSignal.timeout(20_000);

const frame = (channel: number, text: string): Buffer => {
  const head = Buffer.alloc(5);
  head[0] = channel;
  head.writeUInt32BE(text.length, 1);
  return text === '' ? Buffer.alloc(0) : Buffer.concat([head, Buffer.from(text)]);
};

/** The words of a preamble, of which the old agent reads what it knows. */
const wordsOf = (body: Buffer): z.infer<typeof Preamble> =>
  Preamble.parse(JSON.parse(body.subarray(4, 4 + body.readUInt32BE()).toString()));
const Preamble = z.object({ id: z.string(), argv: z.array(z.string()), stdin: z.enum(['none', 'open', 'later']) });

const find = (route: string, body: Buffer): Exchange | undefined =>
  exchanges.find(({ method, path, preamble }) => {
    if (`${method} ${path}` !== route) return false;
    return preamble === undefined || preamble.argv.join(' ') === wordsOf(body).argv.join(' ');
  }) ?? later;

/** Answers the frozen requests with the frozen answers, and no other. `more`: with fields and headers that came later. */
const old = (asked: string[], more: boolean) => {
  const answer = (stream: ServerHttp2Stream, route: string, body: Buffer) => {
    const found = find(route, body);
    if (found === undefined) throw new Error('no vectors');
    const { status, json, output } = found;
    if (output === undefined) {
      stream.respond({ ':status': status, ...(more && { 'nexus-later': '1' }) });
      // the words of a refusal are the agent's own
      stream.end(json === undefined ? '' : JSON.stringify({ detail: 'in its words', ...listed(json, more) }));
      return;
    }
    stream.respond(
      { ':status': status, 'nexus-exec-pid': '7', ...(more && { 'nexus-later': '1' }) },
      { waitForTrailers: true },
    );
    const trailers = { ...output.trailers, 'nexus-duration-us': '10', ...(more && { 'nexus-later': '1' }) };
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    stream.end(Buffer.concat([frame(1, output.stdout), frame(2, output.stderr)]));
  };
  return speaker((stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    const route = `${headers[':method'] ?? 'GET'} ${headers[':path']}`;
    const body: Buffer[] = [];
    asked.push(route);
    const known = exchanges.some(({ method, path }) => `${method} ${path}` === route);
    if (!known) return answer(stream, route, Buffer.alloc(0)); // as Go's: it waits for no body
    stream.on('data', (chunk: Buffer) => body.push(chunk));
    stream.on('end', () => answer(stream, route, Buffer.concat(body)));
  });
};

/** Of a list the old agent said no more than this. */
const listed = (json: Record<string, unknown>, more: boolean): object =>
  'execs' in json ? { execs: [{ id: 'gen1', pid: 7, running: false, ...(more && { later: 1 }) }] } : json;

const machine = async (more: boolean): Promise<Rig & { asked: string[] }> => {
  const asked: string[] = [];
  const r = await rig(old(asked, more), { settle: () => ({ clock_ms: Date.now(), entropy: 'AAAA' }) });
  assert.equal(await ring(r, { ...facts, ...(more && { later: { a: 1 } }) }), 204);
  await r.guest.ready(soon());
  return Object.assign(r, { asked });
};

const run = (r: Rig, id: string, argv: string[]) =>
  r.guest.exec({ ...ExecSpec.parse({ argv }), id }, { signal: soon() });

for (const more of [false, true]) {
  test(`an agent that knows ${more ? 'more than this daemon' : 'only what generation 1 began with'}`, async () => {
    await using r = await machine(more);
    assert.equal(r.guest.facts?.os, 'Debian GNU/Linux 12 (bookworm)');
    const stream = await run(r, 'gen1', ['sh', '-c', 'echo out; echo err >&2; exit 3']);
    const got: Record<string, string> = {};
    for await (const piece of stream) if ('data' in piece) got[piece.channel] = piece.data.toString();
    assert.deepEqual([got, (await stream.result).exit_code], [{ stdout: 'out\n', stderr: 'err\n' }, 3]);
    const again = await r.guest.attachExec('gen1', { stdout: 1, stderr: 0 }, soon());
    assert.equal(await drain(again), 3);
    const killed = await run(r, 'killed', ['sh', '-c', 'kill -KILL $$']);
    await drain(killed);
    assert.equal((await killed.result).signal, 'KILL');
    await assert.rejects(
      run(r, 'none', ['/no/such/program']),
      fault('not_found', /Cannot run '\/no\/such\/program': the guest has no such program/),
    );
    await assert.rejects(r.guest.signalExec('gen1', 'TERM', soon()), fault('not_found', /./));
    assert.deepEqual(
      (await r.guest.execs(soon())).map(({ id, running }) => [id, running]),
      [['gen1', false]],
    );
    await r.guest.power('poweroff', 1000, soon());
    await poll('the clock', 10_000, () => r.asked.filter(one => one === 'POST /v1/settle').length > 1 || undefined);
    assert.equal(r.opened(), 1, 'nothing of this cost the connection');
  });
}

test('what came later is refused as such, each with what to do', async () => {
  await using r = await machine(false);
  const shell = { ...ExecSpec.parse({ argv: ['sh'] }), id: 'shell', tty: { cols: 80, rows: 24 } };
  const asks: [string, () => Promise<unknown>][] = [
    ['a terminal', () => r.guest.viewTerminal(shell, soon())],
    ['its size', () => r.guest.resizeExec('gen1', 80, 24, soon())],
    ['how it is', () => r.guest.now(soon())],
    ['a disk', () => r.guest.growDisk('vda', 1, soon())],
    ['a port', () => r.guest.openPort({ port: 80 }, soon())],
    ['another agent', () => r.guest.update({ path: '/nowhere', sha256: '' }, soon())],
    ['a file', () => r.guest.files.stat('/etc/hostname', true, soon())],
  ];
  for (const [name, ask] of asks) {
    await assert.rejects(ask(), error => {
      fault('unsupported', /^Cannot .+: the guest's agent is older than this daemon\.$/)(error);
      assert.match(String(Object(error).hint), /rebuild the image/, name);
      return true;
    });
  }
});

test('other generations are refused with what to do, and one that fits afterwards is taken', async () => {
  for (const [generation, hint] of [
    [0, /Build the image again/],
    [2, /newer Nexus/],
    [1000, /newer Nexus/],
  ] as const) {
    await using r = await rig(old([], false));
    assert.equal(await ring(r, { ...FACTS, generation, agent_id: undefined }), 400, 'whatever else it says');
    await assert.rejects(r.guest.ready(soon()), error => {
      fault('unsupported', new RegExp(`its agent speaks generation ${generation}, this daemon 1\\.$`))(error);
      assert.match(String(Object(error).hint), hint);
      return true;
    });
    assert.equal(r.opened(), 0, 'nothing is asked of it');
    assert.equal(await ring(r), 204);
    await r.guest.ready(soon());
  }
  await using r = await rig(old([], false));
  for (const generation of [-1, 1.5, '1', null]) assert.equal(await ring(r, { ...FACTS, generation }), 400);
  assert.equal(r.opened(), 0);
});

test('what may have run is asked for again of the agent that was asked first, and of no other', async () => {
  const [one, other] = ['1'.repeat(32), '2'.repeat(32)];
  for (const next of [one, other]) {
    const asked: unknown[] = [];
    let agent = one;
    const answer = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
      const first = headers['nexus-agent-id'];
      if (asked.push(first) === 1) {
        agent = next;
        void ring(r, { ...FACTS, agent_id: next }).then(() => stream.session?.destroy());
      } else if (first !== undefined && first !== agent) {
        stream.respond({ ':status': 412 });
        stream.end(JSON.stringify({ code: 'conflict', detail: 'in its words' }));
      } else {
        stream.respond({ ':status': 200, 'nexus-exec-pid': '7' }, { waitForTrailers: true });
        stream.on('wantTrailers', () => stream.sendTrailers(ended));
        stream.end();
      }
    };
    const ended = { 'nexus-exit-code': '5', 'nexus-timed-out': '0', 'nexus-duration-us': '1' };
    const r = await rig(speaker(answer));
    await using _closed = r;
    await ring(r, { ...FACTS, agent_id: one });
    await r.guest.ready(soon());
    const code = run(r, 'twice', ['true']).then(drain);
    if (next === one) assert.equal(await code, 5);
    else await assert.rejects(code, fault('guest', /^The end of command twice is not known: .* started again\.$/));
    assert.deepEqual(asked, [undefined, one]);
  }
});
