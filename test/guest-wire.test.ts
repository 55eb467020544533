/** The bytes of the guest protocol: golden vectors that the agent tests too, properties, a seeded fuzz. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import { ExecExit, ExecSpec } from '../src/api/exec.ts';
import { Fault } from '../src/api/fault.ts';
import { Clock } from '../src/guest/clock.ts';
import { Now } from '../src/guest/facts.ts';
import { PortFrames, portFrame } from '../src/guest/port_frames.ts';
import { framed } from '../src/guest/send.ts';
import { About } from '../src/guest/update.ts';
import { type ExecPiece, encodePreamble, exitOf, FrameParser, MAX_FRAME } from '../src/guest/wire.ts';

const vectors = <T>(name: string, schema: z.ZodType<T>): T =>
  schema.parse(JSON.parse(readFileSync(join(import.meta.dirname, 'vectors', `${name}.json`), 'utf8')));

const Piece = z.union([
  z.strictObject({ channel: z.enum(['stdout', 'stderr']), data: z.string() }),
  z.strictObject({ channel: z.enum(['stdout', 'stderr']), gap: z.number() }),
]);
type Piece = z.infer<typeof Piece>;

const shown = (piece: ExecPiece): Piece =>
  'gap' in piece
    ? { channel: piece.channel, gap: piece.gap }
    : { channel: piece.channel, data: piece.data.toString('hex') };

const isGuestFault = (error: unknown) => error instanceof Fault && error.code === 'guest';

/** The frames of `bytes`, given in portions that end at `cuts`. */
const parse = (bytes: Buffer, cuts: readonly number[] = []): { pieces: Piece[]; clean: boolean } => {
  const parser = new FrameParser();
  const pieces: Piece[] = [];
  let from = 0;
  for (const to of [...cuts, bytes.length].sort((a, b) => a - b)) {
    // A copy, as a read buffer is: the parser may not rely on what comes after it.
    for (const piece of parser.push(Buffer.from(bytes.subarray(from, to)))) pieces.push(shown(piece));
    from = to;
  }
  return { pieces, clean: parser.clean };
};

const Case = { name: z.string(), hex: z.string() };
const Frames = z.object({
  good: z.array(z.object({ ...Case, frames: z.array(Piece) })).min(1),
  bad: z.array(z.object(Case)).min(1),
});

test('golden frames', () => {
  const { good, bad } = vectors('exec-frames', Frames);
  for (const { name, hex, frames } of good) {
    const bytes = Buffer.from(hex, 'hex');
    assert.deepEqual(parse(bytes), { pieces: frames, clean: true }, name);
    const each = Array.from({ length: bytes.length }, (_, n) => n);
    assert.deepEqual(parse(bytes, each), { pieces: frames, clean: true }, `${name}, byte by byte`);
  }
  for (const { name, hex } of bad) assert.throws(() => parse(Buffer.from(hex, 'hex')), isGuestFault, name);
});

const Trailers = z.object({
  good: z.array(z.object({ name: z.string(), trailers: z.record(z.string(), z.string()), exit: ExecExit })).min(1),
  bad: z.array(z.object({ name: z.string(), trailers: z.record(z.string(), z.string()) })).min(1),
});

test('golden trailers', () => {
  const { good, bad } = vectors('exec-trailers', Trailers);
  for (const { name, trailers, exit } of good) assert.deepEqual(exitOf(trailers), exit, name);
  for (const { name, trailers } of bad) assert.throws(() => exitOf(trailers), isGuestFault, name);
  assert.throws(() => exitOf({ ...good[0]?.trailers, 'nexus-exit-code': ['0', '0'] }), isGuestFault, 'a list');
});

const NowCases = z.object({
  good: z.array(z.object({ now: Now })).min(1),
  bad: z.array(z.object({ name: z.string(), now: z.unknown() })),
});

test('golden words of how a guest is', () => {
  const { bad } = vectors('now', NowCases);
  for (const { name, now } of bad) assert.ok(!Now.safeParse(now).success, name);
});

const ClockCases = z.object({
  good: z.array(z.object({ clock: Clock })).min(1),
  bad: z.array(z.object({ name: z.string(), clock: z.unknown() })).min(1),
});

test('golden clocks', () => {
  for (const { name, clock } of vectors('clock', ClockCases).bad) assert.ok(!Clock.safeParse(clock).success, name);
});

const AgentCases = z.object({
  good: z.array(z.object({ agent: About })).min(1),
  bad: z.array(z.object({ name: z.string(), agent: z.unknown() })).min(1),
});

test('golden words of which program the agent is', () => {
  for (const { name, agent } of vectors('agent', AgentCases).bad) assert.ok(!About.safeParse(agent).success, name);
});

const PortCases = z.object({
  good: z.array(z.object({ ...Case, data: z.string(), ended: z.boolean() })).min(1),
  bad: z.array(z.object(Case)).min(1),
});

test('golden frames of ports, however they are cut', () => {
  const { good, bad } = vectors('port-frames', PortCases);
  const read = (hex: string, size: number) => {
    const frames = new PortFrames();
    const bytes = Buffer.from(hex, 'hex');
    const pieces: (Buffer | 'end')[] = [];
    for (let at = 0; at < bytes.length; at += size) pieces.push(...frames.push(bytes.subarray(at, at + size)));
    const data = Buffer.concat(pieces.filter(piece => piece !== 'end')).toString('hex');
    assert.equal(pieces.at(-1) === 'end', frames.ended);
    return { data, ended: frames.ended };
  };
  for (const { name, hex, data, ended } of good)
    for (const size of [1, 2, 3, 5, 100]) assert.deepEqual(read(hex, size), { data, ended }, `${name}, by ${size}`);
  const two = [portFrame(Buffer.from('010203', 'hex')), portFrame(Buffer.alloc(0))];
  assert.equal(Buffer.concat(two).toString('hex'), '0000000301020300000000');
  for (const { name, hex } of bad)
    for (const size of [1, 3, 100]) assert.throws(() => read(hex, size), isGuestFault, name);
});

const Spec = z.looseObject({
  id: z.string(),
  argv: z.array(z.string()),
  stdin: z.enum(['none', 'open', 'later']),
});
const Preamble = z.object({ good: z.array(z.object({ ...Case, spec: Spec })).min(1) });

test('golden preambles', () => {
  for (const { name, hex, spec } of vectors('exec-preamble', Preamble).good) {
    const { id, stdin, argv, digest, session, tail, ...rest } = spec;
    const checked = ExecSpec.parse({ ...rest, argv: ['the shell'], stdin: 'none' });
    const asked = JSON.parse(JSON.stringify({ digest, session, tail }));
    const bytes = encodePreamble({ ...checked, id, stdin, argv, ...asked });
    assert.equal(bytes.readUInt32BE(0), bytes.length - 4, name);
    const json: unknown = JSON.parse(bytes.subarray(4).toString('utf8'));
    const golden: unknown = JSON.parse(Buffer.from(hex, 'hex').subarray(4).toString('utf8'));
    assert.deepEqual(json, golden, name);
  }
});

const channel = fc.constantFrom<'stdout' | 'stderr'>('stdout', 'stderr');
const frame = fc.oneof(
  fc.record({ channel, data: fc.uint8Array({ minLength: 1, maxLength: 6000 }) }),
  fc.record({ channel, gap: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }) }),
);

const encode = (f: { channel: 'stdout' | 'stderr'; data?: Uint8Array; gap?: number }): Buffer => {
  const number = f.channel === 'stdout' ? 1 : 2;
  const payload = f.data === undefined ? Buffer.alloc(9) : Buffer.from(f.data);
  if (f.gap !== undefined) {
    payload[0] = number;
    payload.writeBigUInt64BE(BigInt(f.gap), 1);
  }
  const head = Buffer.alloc(5);
  head[0] = f.gap === undefined ? number : 3;
  head.writeUInt32BE(payload.length, 1);
  return Buffer.concat([head, payload]);
};

test('however the bytes are split, the frames are the same', () => {
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 12 }), fc.array(fc.nat()), (frames, at) => {
      const bytes = Buffer.concat(frames.map(encode));
      const cuts = at.map(n => n % (bytes.length + 1));
      const wanted = frames.map(f => shown('gap' in f ? f : { channel: f.channel, data: Buffer.from(f.data) }));
      assert.deepEqual(parse(bytes, cuts), { pieces: wanted, clean: true });
    }),
  );
});

test('a frame that is cut off leaves the parser unclean', () => {
  const bytes = encode({ channel: 'stdout', data: Buffer.alloc(100) });
  for (let n = 1; n < bytes.length; n++) assert.equal(parse(bytes.subarray(0, n)).clean, false, `${n} bytes`);
});

test('fuzz: any bytes give bounded frames or one fault, split or whole', () => {
  const head = fc.tuple(
    fc.integer({ min: 0, max: 4 }),
    fc.integer({ min: 0, max: 70_000 }),
    fc.uint8Array({ maxLength: 40 }),
  );
  const crooked = fc.array(head, { maxLength: 20 }).map(heads =>
    Buffer.concat(
      heads.map(([number, length, data]) => {
        const bytes = Buffer.alloc(5);
        bytes[0] = number;
        bytes.writeUInt32BE(length % 3 === 0 ? data.length : length, 1);
        return Buffer.concat([bytes, data]);
      }),
    ),
  );
  const outcome = (bytes: Buffer, cuts: number[]) => {
    try {
      return parse(bytes, cuts);
    } catch (error) {
      assert.ok(isGuestFault(error));
      return 'fault';
    }
  };
  fc.assert(
    fc.property(
      fc.oneof(fc.uint8Array({ maxLength: 300 }).map(Buffer.from), crooked),
      fc.array(fc.nat()),
      (bytes, at) => {
        const whole = outcome(bytes, []);
        assert.deepEqual(
          outcome(
            bytes,
            at.map(n => n % (bytes.length + 1)),
          ),
          whole,
        );
        if (whole === 'fault' || typeof whole === 'string') return;
        const total = whole.pieces.reduce((sum, p) => sum + ('data' in p ? p.data.length / 2 : 0), 0);
        assert.ok(total <= bytes.length && whole.pieces.every(p => 'gap' in p || p.data.length / 2 <= MAX_FRAME));
      },
    ),
    { numRuns: 2000 },
  );
});

const Bodies = z.object({
  bodies: z.array(z.object({ name: z.string(), chunks: z.array(z.string()), body: z.string() })),
});

test('golden: bodies in frames', async () => {
  const { bodies } = vectors('fs-frames', Bodies);
  assert.ok(bodies.length > 0);
  for (const { name, chunks, body } of bodies) {
    const source = Readable.from(
      chunks.map(hex => Buffer.from(hex, 'hex')),
      { objectMode: true },
    );
    assert.equal(Buffer.concat(await Array.fromAsync(framed(source))).toString('hex'), body, name);
  }
  const long = Buffer.concat(await Array.fromAsync(framed(Readable.from([Buffer.alloc(100_000)]))));
  assert.deepEqual([long.length, long.readUInt32BE(0), long.readUInt32BE(65_540)], [100_012, 65_536, 34_464]);
});
