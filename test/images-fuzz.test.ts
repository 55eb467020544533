/**
 * Archives with random damage under random overlays: each is refused with a fault, or GNU tar reads the merged result as we did.
 * NEXUS_FUZZ_SEED repeats a run, NEXUS_FUZZ_ROUNDS makes it longer.
 */
import assert from 'node:assert/strict';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { type Default, mergedTar, type Overlay, planMerge } from '../src/images/merge.ts';
import { type Scan, scanArchive } from '../src/images/scan.ts';
import { normalise, parentOf } from '../src/images/tree.ts';
import { archive, entry, gnuNames, type Item } from './kit/tar.ts';

/** mulberry32 */
const random = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

const seed = Number(process.env.NEXUS_FUZZ_SEED ?? Date.now() % 2 ** 31);
const rounds = Number(process.env.NEXUS_FUZZ_ROUNDS ?? 400);
const { signal } = new AbortController();

const ITEMS: (Item | Buffer)[] = [
  { name: './', type: '5', mode: 0o755 },
  { name: 'a', type: '5', mode: 0o755 },
  { name: 'a/file', data: 'x'.repeat(1300) },
  {
    name: 'a/pax',
    data: 'y',
    pax: [
      ['path', 'a/longer'],
      ['SCHILY.xattr.user.x', Buffer.from([0x80, 0, 10])],
    ],
  },
  { name: 'a/link', type: '2', link: '../b' },
  { name: 'a/hard', type: '1', link: 'a/file' },
  entry({ name: '././@LongLink', type: 'L', data: `a/${'n'.repeat(150)}\0`, magic: 'ustar  \0' }),
  { name: 'cut', data: 'z', magic: 'ustar  \0' },
  { name: 'p', prefix: 'b/c', data: '1' },
  { name: 'null', type: '3', device: [1, 3] },
  { name: 'a/last', data: 'last' },
];

/** Damages some bytes; checksums are mended, or hardly anything would get past them. */
const damage = (bytes: Buffer, next: () => number): Buffer => {
  const pick = (n: number) => Math.floor(next() * n);
  const out = Buffer.from(bytes);
  const interesting = [0, 0x20, 0x2f, 0x2e, 0x30, 0x31, 0x37, 0x80, 0xff, 0x0a, 0x3d];
  for (let n = 1 + pick(3); n > 0; n--) {
    const block = pick(out.length / 512) * 512;
    const fields = [0, 1, 2, 100, 124, 130, 135, 156, 157, 158, 257, 263, 345, 482, pick(512)];
    const at = block + (fields[pick(fields.length)] ?? 0);
    const value = next() < 0.7 ? (interesting[pick(interesting.length)] ?? 0) : 'xgLKSD0123456'.charCodeAt(pick(13));
    out[at] = value;
    out.fill(' ', block + 148, block + 156);
    let sum = 0;
    for (const byte of out.subarray(block, block + 512)) sum += byte;
    if (out.toString('latin1', block + 257, block + 262) === 'ustar')
      out.write(`${sum.toString(8).padStart(6, '0')}\0 `, block + 148, 'latin1');
    else bytes.copy(out, block + 148, block + 148, block + 156);
  }
  if (next() < 0.1) return out.subarray(0, pick(out.length));
  return out;
};

const PATHS =
  `/a/ours /a/file /a/link /a/link/x /a/hard /a/longer /a /b /b/c /b/c/p /null /null/x /new/deep/er /new/deep /new /cut
  a/./last /a/last/ / /. /../x /a/../b // ${`/${'o'.repeat(150)}`} /\u0151`.split(/\s+/);
const TARGETS = ['a', '/b/c', '../..', 'x/../link', 't'.repeat(150), ''];
const WHENS = ['replace', 'missing', 'extend'] as const;

/** Some overlays and defaults, good and bad ones. */
const overlaysOf = (next: () => number): { overlays: Overlay[]; defaults: Default[] } => {
  const one = <T>(from: readonly T[]): T | undefined => from[Math.floor(next() * from.length)];
  const overlay = (kinds: readonly Default['type'][]): Default => ({
    path: one(PATHS) ?? '/',
    type: one(kinds) ?? 'file',
    ...(next() < 0.5 ? { data: Buffer.alloc(Math.floor(next() * 1500), 'o'), uid: 7 } : {}),
    ...(next() < 0.8 ? { target: one(TARGETS) ?? '' } : {}),
  });
  const count = () => Array.from({ length: Math.floor(next() * 4) });
  const kinds = ['file', 'file', 'dir', 'symlink'] as const;
  return {
    overlays: count().map(() => (next() < 0.3 ? { path: one(PATHS) ?? '/', type: 'delete' } : overlay(kinds))),
    defaults: count().map(() => ({ ...overlay(kinds), when: one(WHENS) ?? 'replace' })),
  };
};

/** Names are what the invariants of the tree say, whatever the overlays did to it. */
const isTree = ({ tree }: Scan): boolean =>
  [...tree.nodes].every(([path, node]) => {
    const parent = tree.nodes.get(parentOf(path));
    const target = node.kind === 'hardlink' ? tree.nodes.get(node.target) : node;
    return parent?.kind === 'dir' && target !== undefined && (node.kind !== 'hardlink' || target.kind !== 'dir');
  });

test(`damaged archives are refused or mean to GNU tar what they mean to us (seed ${seed})`, async t => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-fuzz-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const whole = archive(...ITEMS);
  const [path, merged] = [join(dir, 'in.tar'), join(dir, 'out.tar')];
  let passed = 0;
  for (let round = 0; round < rounds; round++) {
    const next = random(seed * 7919 + round);
    await writeFile(path, damage(whole, next));
    await using handle = await open(path, 'r');
    const parts: Buffer[] = [];
    let names: string[];
    const { overlays, defaults } = overlaysOf(next);
    try {
      const scan = await scanArchive(handle, { signal });
      const plan = planMerge(scan, overlays, () => defaults);
      for await (const part of mergedTar(handle, scan, plan, { signal })) parts.push(Buffer.from(part));
      names = [...scan.tree.nodes.keys()];
      assert.ok(isTree(scan) && plan.blocks >= 0, `round ${round}: ${JSON.stringify([overlays, names])}`);
    } catch (error) {
      assert.ok(error instanceof Fault, `round ${round}: ${error instanceof Error ? error.stack : error}`);
      assert.equal(error.code, 'invalid');
      assert.ok(
        !/[\p{Cc}]/u.test(error.message),
        `round ${round}: control characters in ${JSON.stringify(error.message)}`,
      );
      continue;
    }
    passed++;
    await writeFile(merged, Buffer.concat(parts));
    const theirs = await gnuNames(merged);
    assert.ok(typeof theirs !== 'string', `round ${round}: ${theirs}`);
    assert.deepEqual([...new Set(theirs.map(name => normalise(name)))].sort(), names.sort(), `round ${round}`);
  }
  t.diagnostic(`${passed} of ${rounds} passed the check`);
  assert.ok(passed > 0 && passed < rounds);
});
