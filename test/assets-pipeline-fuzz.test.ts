/**
 * The readers of foreign bytes against damage of every kind: what comes out is what the maker packed, or a fault that says why.
 * NEXUS_FUZZ_SEED repeats a run, NEXUS_FUZZ_ROUNDS makes it longer.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { Fault } from '../src/api/fault.ts';
import { arMembers } from '../src/assets/ar.ts';
import { elfOfBzImage } from '../src/assets/bzimage.ts';
import { member } from '../src/assets/member.ts';
import { sumFor } from '../src/assets/sums.ts';
import { unpack } from '../src/assets/unpack.ts';
import { lastStreamBytes } from '../src/assets/xz.ts';
import { oneFrame } from '../src/assets/zstd.ts';
import { run } from '../src/lib/proc.ts';
import { sha256, xz } from './kit/layouts.ts';
import { ar, makeBzImage, makeElf } from './kit/packages.ts';
import { archive, entry, type Item } from './kit/tar.ts';

const seed = Number(process.env.NEXUS_FUZZ_SEED ?? Date.now() % 2 ** 31);
const rounds = Number(process.env.NEXUS_FUZZ_ROUNDS ?? 150);
const many = { seed, numRuns: rounds };
const few = { seed, numRuns: Math.ceil(rounds / 10) };
const { signal } = new AbortController();

let dir = '';
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-fuzz-'));
});
after(() => rm(dir, { recursive: true, force: true }));

type Damage = (bytes: Buffer) => Buffer;
const flip = fc.tuple(fc.nat(), fc.nat(255)).map(
  ([at, byte]): Damage =>
    bytes => {
      const out = Buffer.from(bytes);
      if (out.length > 0) out[at % out.length] = byte;
      return out;
    },
);
const cut = fc.nat().map(
  (at): Damage =>
    bytes =>
      bytes.subarray(0, at % (bytes.length + 1)),
);
const insert = fc.tuple(fc.nat(), fc.uint8Array({ maxLength: 600 })).map(
  ([at, more]): Damage =>
    bytes => {
      const place = at % (bytes.length + 1);
      return Buffer.concat([bytes.subarray(0, place), more, bytes.subarray(place)]);
    },
);
const again = fc.tuple(fc.nat(), fc.nat(2000)).map(
  ([at, size]): Damage =>
    bytes => {
      const place = at % (bytes.length + 1);
      return Buffer.concat([bytes.subarray(0, place + size), bytes.subarray(place)]);
    },
);
/** Up to three damages, one after the other. */
const damage = fc
  .array(fc.oneof({ weight: 6, arbitrary: flip }, cut, insert, again), { minLength: 1, maxLength: 3 })
  .map(
    (all): Damage =>
      bytes =>
        all.reduce((now, one) => one(now), bytes),
  );
const piece = fc.integer({ min: 1, max: 5000 });

const pieces = async function* (bytes: Buffer, length: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
};
const whole = async (from: AsyncIterable<Buffer>): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  for await (const chunk of from) chunks.push(chunk);
  return Buffer.concat(chunks);
};
/** The bytes, or undefined for a fault that refuses them; any other error fails the test. */
const orRefused = async (work: () => Promise<Buffer>): Promise<Buffer | undefined> => {
  try {
    return await work();
  } catch (error) {
    assert.ok(error instanceof Fault, `${error instanceof Error ? error.stack : error}`);
    assert.ok(error.code === 'unverified' || error.code === 'unsupported', error.message);
    assert.doesNotMatch(error.message, /[\p{Cc}]/u);
    return undefined;
  }
};

test(`compressed streams: what was packed, or a fault (seed ${seed})`, async () => {
  const data = Buffer.concat([makeElf(5000), Buffer.from('a text that repeats, '.repeat(300))]);
  const forms = { xz: await xz(data), gzip: gzipSync(data), zstd: zstdCompressSync(data, { params: { 201: 1 } }) };
  for (const how of ['gzip', 'zstd', 'xz'] as const)
    await fc.assert(
      fc.asyncProperty(damage, piece, async (spoil, length) => {
        const bytes = spoil(forms[how]);
        const out = await orRefused(() => whole(unpack(how, pieces(bytes, length), signal)));
        if (out !== undefined) assert.ok(out.equals(data), how);
      }),
      how === 'xz' ? few : many,
    );
});

test(`frames and streams: one whole one, or a fault (seed ${seed})`, async () => {
  const one = zstdCompressSync(makeElf(400_000));
  await fc.assert(
    fc.asyncProperty(damage, piece, async (spoil, length) => {
      const bytes = spoil(one);
      const out = await orRefused(() => whole(oneFrame(pieces(bytes, length))));
      if (out !== undefined) assert.ok(out.equals(bytes));
    }),
    many,
  );
  const packed = await xz(makeElf(100_000));
  assert.equal(lastStreamBytes(packed), packed.length);
  await fc.assert(
    fc.asyncProperty(damage, async spoil => {
      await orRefused(async () => Buffer.alloc(lastStreamBytes(spoil(packed)) < 0 ? 1 : 0));
    }),
    many,
  );
});

const ITEMS: (Item | Buffer)[] = [
  { name: './', type: '5' },
  { name: 'first', data: 'x'.repeat(700) },
  {
    name: 'pax',
    data: 'y',
    pax: [
      ['path', 'a/longer'],
      ['mtime', '1.5'],
    ],
  },
  { name: 'link', type: '2', link: 'wanted' },
  entry({ name: '././@LongLink', type: 'L', data: `${'n'.repeat(150)}\0`, magic: 'ustar  \0' }),
  { name: 'cut', data: 'z', magic: 'ustar  \0' },
  { name: 'wanted', data: 'w'.repeat(3000) },
  { name: 'last', data: 'last' },
];
/** Mends the checksums of headers, or hardly any damage would get past them. */
const mended: Damage = bytes => {
  const out = Buffer.from(bytes);
  for (let at = 0; at + 512 <= out.length; at += 512) {
    if (out.toString('latin1', at + 257, at + 262) !== 'ustar') continue;
    out.fill(' ', at + 148, at + 156);
    let sum = 0;
    for (const byte of out.subarray(at, at + 512)) sum += byte;
    out.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1');
  }
  return out;
};

test(`the member of an archive: a file that long, or a fault (seed ${seed})`, async () => {
  const tar = archive(...ITEMS);
  const deb = ar({ 'debian-binary': Buffer.from('2.0\n'), 'control.tar': archive(), 'data.tar': tar });
  for (const [kind, bytes] of [
    ['tar', tar],
    ['deb', deb],
  ] as const)
    await fc.assert(
      fc.asyncProperty(damage, fc.boolean(), piece, async (spoil, mend, length) => {
        const spoilt = mend && kind === 'tar' ? mended(spoil(bytes)) : spoil(bytes);
        const beside = {};
        const collect = async (file: { bytes: (max: number) => Promise<Buffer> }) => void (await file.bytes(10_000));
        const options = { dir, beside, collect, signal };
        const stage = { stage: 'member' as const, archive: kind, name: 'wanted', beside: {} };
        const out = await orRefused(() => whole(member(stage, pieces(spoilt, length), options)));
        assert.ok(out === undefined || out.length <= spoilt.length);
      }),
      many,
    );
});

test(`ar: members that lie in the file, or a fault (seed ${seed})`, async () => {
  const deb = ar({
    'debian-binary': Buffer.from('2.0\n'),
    'control.tar': Buffer.alloc(301, 'c'),
    'data.tar': Buffer.alloc(900, 'd'),
  });
  await fc.assert(
    fc.asyncProperty(damage, piece, async (spoil, length) => {
      const bytes = spoil(deb);
      const out = await orRefused(async () => {
        const parts: Buffer[] = [];
        for await (const { size, content } of arMembers(pieces(bytes, length))) {
          const part = await whole(content);
          assert.equal(part.length, size);
          parts.push(part);
        }
        return Buffer.concat(parts);
      });
      assert.ok(out === undefined || out.length <= bytes.length);
    }),
    many,
  );
});

test(`a bzImage: its ELF, or a fault (seed ${seed})`, async () => {
  const elf = makeElf();
  const image = makeBzImage(zstdCompressSync(elf), elf.length);
  await fc.assert(
    fc.asyncProperty(damage, async spoil => {
      const out = await orRefused(() => elfOfBzImage(spoil(image)));
      assert.ok(out === undefined || out.readUInt32BE(0) === 0x7f454c46);
    }),
    many,
  );
});

test(`lists of checksums: the hash that stands at the name, or a fault (seed ${seed})`, () => {
  const hash = fc.stringMatching(/^[0-9a-f]{64}$/);
  const name = fc.constantFrom(
    'kernel.xz',
    'kernel',
    './kernel',
    'a/kernel',
    'kernel ',
    'Kernel',
    '*kernel',
    '(kernel)',
  );
  const line = fc.oneof(
    fc.tuple(hash, fc.constantFrom('  ', ' *', ' ', '\t', ''), name).map(([h, gap, n]) => `${h}${gap}${n}`),
    fc.tuple(fc.constantFrom('SHA256', 'SHA512', 'sha256'), name, hash).map(([kind, n, h]) => `${kind} (${n}) = ${h}`),
    hash,
    fc.string({ maxLength: 90 }),
  );
  fc.assert(
    fc.property(fc.array(line, { maxLength: 6 }), fc.constantFrom('\n', '\r\n'), (lines, end) => {
      try {
        const found = sumFor(lines.join(end), 'kernel', 'list');
        const at = lines.filter(l => l.toLowerCase().includes(found));
        assert.ok(
          at.some(l => /^[0-9a-f]{64}$/i.test(l.trim()) || /[\s*(/]kernel(\)|$)/.test(l)),
          lines.join('\n'),
        );
      } catch (error) {
        assert.ok(error instanceof Fault && error.code === 'unverified', String(error));
      }
    }),
    { seed, numRuns: rounds * 10 },
  );
});

test('lists that sha256sum writes', async () => {
  const names = ['plain', 'with space', '*star', '(paren) = x', "quote'", 'ünïcödé', '-dash'];
  for (const name of names) await writeFile(join(dir, name), `content of ${name}`);
  for (const way of [[], ['--binary'], ['--tag'], ['--text']]) {
    const { stdout } = await run(['sha256sum', ...way, '--', ...names], { cwd: dir });
    for (const name of names)
      assert.equal(sumFor(stdout, name, 'list'), sha256(`content of ${name}`), `${way} ${name}`);
  }
});
