import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { Fault } from '../src/api/fault.ts';
import { aptFault } from '../src/assets/apt.ts';
import { arMembers, debData } from '../src/assets/ar.ts';
import { bzPayload, elfOfBzImage } from '../src/assets/bzimage.ts';
import { type CpioEntry, cpio, withFolders } from '../src/assets/cpio.ts';
import { cloudReleases } from '../src/assets/debian-kernel.ts';
import { elfSection, hasPvh } from '../src/assets/elf.ts';
import { agentCpio, writeInitrd } from '../src/assets/initrd.ts';
import { lz4Legacy } from '../src/assets/lz4.ts';
import { readDeb } from '../src/assets/member.ts';
import { moduleIndex } from '../src/assets/modindex.ts';
import { bootOrder, closure, type KernelModule } from '../src/assets/modules.ts';
import { matches } from '../src/assets/versions.ts';
import { makeBzImage, makeElf } from './kit/packages.ts';

let dir = '';
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nexus-assets-'));
});
after(() => rm(dir, { recursive: true, force: true }));

const quiet = { signal: new AbortController().signal, onBytes: () => {} };
const run = (argv: readonly [string, ...string[]], input?: Buffer): Buffer =>
  execFileSync(argv[0], argv.slice(1), {
    input,
    cwd: dir,
    maxBuffer: 64 * 1024 * 1024,
    stdio: ['pipe', 'pipe', 'pipe'],
  });

/** A real .deb with the given files, made by ar and tar. */
const makeDeb = async (name: string, compress: 'xz' | 'zstd' | 'gzip'): Promise<string> => {
  const end = { xz: 'xz', zstd: 'zst', gzip: 'gz' }[compress];
  await writeFile(join(dir, 'debian-binary'), '2.0\n');
  await writeFile(join(dir, 'hello'), 'hello, world');
  run(['tar', '-cf', 'data.tar', './hello']);
  run(['tar', '-czf', 'control.tar.gz', './hello']);
  await writeFile(join(dir, `data.tar.${end}`), run([compress, '-c', 'data.tar']));
  await rm(join(dir, name), { force: true });
  run(['ar', 'r', name, 'debian-binary', 'control.tar.gz', `data.tar.${end}`]);
  return join(dir, name);
};

/** The bytes in pieces of that length. */
const pieces = async function* (bytes: Buffer, length = 1000): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
};

const membersOf = async (bytes: Buffer, length?: number): Promise<unknown> => {
  const sizes: number[] = [];
  for await (const { size, content } of arMembers(pieces(bytes, length))) {
    let got = 0;
    for await (const part of content) got += part.length;
    assert.equal(got, size);
    sizes.push(got);
  }
  return sizes;
};

/** Refused for what it is; damage that the decompression sees is `unverified`. */
const isFault = (error: unknown): boolean =>
  error instanceof Fault && (error.code === 'unsupported' || error.code === 'unverified');

for (const compress of ['xz', 'zstd', 'gzip'] as const)
  test(`a package with ${compress} data gives its files`, async () => {
    const path = await makeDeb(`${compress}.deb`, compress);
    const found: string[] = [];
    await readDeb(path, quiet, async e => {
      found.push(e.path, (await e.bytes(100)).toString());
    });
    assert.deepEqual(found, ['hello', 'hello, world']);
  });

test('a file of a package that is longer than the bound is refused', async () => {
  const path = await makeDeb('bound.deb', 'xz');
  await assert.rejects(
    readDeb(path, quiet, async e => void (await e.bytes(5))),
    isFault,
  );
});

test('without the xz program the fault names it', async () => {
  const path = await makeDeb('noxz.deb', 'xz');
  const before = process.env.PATH;
  process.env.PATH = '/nonexistent';
  try {
    await assert.rejects(
      readDeb(path, quiet, async () => {}),
      (error: Fault) => error.code === 'host' && error.hint === 'apt-get install xz-utils',
    );
  } finally {
    process.env.PATH = before;
  }
});

test('a package cut short anywhere is refused with a fault, never read as whole', async () => {
  for (const compress of ['xz', 'zstd', 'gzip'] as const) {
    const whole = await readFile(await makeDeb('whole.deb', compress));
    const path = join(dir, 'cut.deb');
    for (let cut = 0; cut < whole.length - 2; cut += 23) {
      await writeFile(path, whole.subarray(0, cut));
      await assert.rejects(
        readDeb(path, quiet, async e => void (await e.bytes(100))),
        isFault,
        `${compress}, cut at ${cut}`,
      );
    }
  }
});

test('a data archive that is damaged inside a sound package is refused, and soon', async () => {
  const refused = async (what: string) => {
    await rm(join(dir, 'in.deb'), { force: true });
    const data = (await readdir(dir)).filter(f => f.startsWith('data.tar.'));
    run(['ar', 'r', 'in.deb', 'debian-binary', 'control.tar.gz', ...data]);
    await assert.rejects(
      readDeb(join(dir, 'in.deb'), quiet, async e => void (await e.bytes(100))),
      isFault,
      what,
    );
  };
  for (const [compress, end] of [
    ['xz', 'xz'],
    ['zstd', 'zst'],
    ['gzip', 'gz'],
  ] as const) {
    for (const f of await readdir(dir)) if (f.startsWith('data.tar.')) await rm(join(dir, f));
    await makeDeb('sound.deb', compress);
    const file = join(dir, `data.tar.${end}`);
    const packed = await readFile(file);
    const tar = await readFile(join(dir, 'data.tar'));
    for (const cut of [0, 5, packed.length >> 1, packed.length - 2]) {
      await writeFile(file, packed.subarray(0, cut));
      await refused(`${compress}, cut at ${cut}`);
    }
    await writeFile(file, run([compress, '-c'], tar.subarray(0, 515)));
    await refused(`${compress}, a tar cut in a file`);
    await writeFile(file, run([compress, '-c'], Buffer.alloc(2048, 'no tar')));
    await refused(`${compress}, no tar`);
    await rm(file);
  }
});

test('an ar header that is wrong in any way is refused', async () => {
  const whole = await readFile(await makeDeb('ar.deb', 'xz'));
  const wrong = (at: number, text: string): Buffer => {
    const bytes = Buffer.from(whole);
    bytes.write(text, at, 'latin1');
    return bytes;
  };
  for (const [at, text] of [
    [0, '!<arcX>\n'],
    [8, '../etc/passwd   '],
    [8, '#1/20           '],
    [56, '9999999999'],
    [56, '-1        '],
    [56, '0x4       '],
    [66, 'XX'],
  ] as const)
    await assert.rejects(membersOf(wrong(at, text)), isFault, `${at} ${text}`);
  run(['ar', 'q', 'twice.deb', 'debian-binary']);
  const once = await readFile(join(dir, 'twice.deb'));
  await assert.rejects(membersOf(Buffer.concat([once, once.subarray(8)])), isFault);
  for await (const _ of debData(pieces(whole))) {
    // it has its parts
  }
  await assert.rejects(async () => {
    for await (const _ of debData(pieces(once))) assert.fail('it has no data');
  }, isFault);
});

test('the ar reader survives flipped bytes, in pieces of any length: whole members, or a fault', async () => {
  const whole = await readFile(await makeDeb('flip.deb', 'xz'));
  await fc.assert(
    fc.asyncProperty(fc.nat(whole.length - 1), fc.nat(255), fc.integer({ min: 1, max: 300 }), async (at, byte, n) => {
      const bytes = Buffer.from(whole);
      bytes[at] = byte;
      await membersOf(bytes, n).catch(error => assert.ok(isFault(error), String(error)));
    }),
    { seed: 7, numRuns: 300 },
  );
});

test('a bzImage gives its ELF: zstd, LZ4 legacy, gzip', async () => {
  const elf = makeElf();
  for (const packed of [zstdCompressSync(elf), run(['lz4', '-l', '-9', '-c'], elf), run(['gzip', '-c'], elf)])
    assert.ok((await elfOfBzImage(makeBzImage(packed, elf.length))).equals(elf));
});

test('a bzImage that lies is refused: length, payload, magic, ELF, machine, PVH', async () => {
  const elf = makeElf();
  const packed = zstdCompressSync(elf);
  const lz4 = run(['lz4', '-l', '-c'], elf);
  const set = (change: (b: Buffer) => unknown, from = makeBzImage(packed, elf.length)) => {
    change(from);
    return from;
  };
  const changed = (change: (b: Buffer) => unknown) => {
    const other = Buffer.from(elf);
    change(other);
    return makeBzImage(zstdCompressSync(other), other.length);
  };
  const bad: [string, Buffer][] = [
    ['a longer length', makeBzImage(packed, elf.length + 1)],
    ['a shorter length', makeBzImage(packed, elf.length - 1)],
    ['an LZ4 length', makeBzImage(lz4, elf.length + 1)],
    ['a shorter LZ4 length', makeBzImage(lz4, elf.length - 1)],
    ['a length of 4 GiB', makeBzImage(packed, 0xffffffff)],
    ['a length of nothing', makeBzImage(packed, 0)],
    ['a bomb', makeBzImage(zstdCompressSync(Buffer.alloc(200_000_000)), 4096)],
    ['an LZ4 bomb', makeBzImage(run(['lz4', '-l', '-c'], Buffer.alloc(30_000_000)), 4096)],
    ['an offset beyond the end', set(b => b.writeUInt32LE(0xfffffff0, 0x248))],
    ['a payload beyond the end', set(b => b.writeUInt32LE(0xfffffff0, 0x24c))],
    ['a payload of 4 bytes', set(b => b.writeUInt32LE(4, 0x24c))],
    ['no HdrS', set(b => b.write('HdrX', 0x202, 'latin1'))],
    ['an old protocol', set(b => b.writeUInt16LE(0x0207, 0x206))],
    ['another compression', set(b => b.writeUInt32LE(1, 2048))],
    ['LZ4 garbage', makeBzImage(Buffer.concat([lz4.subarray(0, 8), Buffer.alloc(500, 0xa5)]), elf.length)],
    ['no ELF', changed(b => b.writeUInt32BE(0, 0))],
    ['another machine', changed(b => b.writeUInt16LE(183, 18))],
    ['no PVH note', changed(b => b.writeUInt32LE(17, 264))],
    ['program headers beyond the end', changed(b => b.writeBigUInt64LE(4090n, 32))],
    ['a note of 2^64 bytes', changed(b => b.writeBigUInt64LE(2n ** 64n - 1n, 96))],
    ['nothing', Buffer.alloc(0)],
  ];
  for (const [what, image] of bad) await assert.rejects(elfOfBzImage(image), isFault, what);
});

test('flipped bytes in a bzImage give its ELF or a fault, never another error', async () => {
  const elf = makeElf();
  const images = [zstdCompressSync(elf), run(['lz4', '-l', '-c'], elf)].map(p => makeBzImage(p, elf.length));
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...images), fc.nat(4000), fc.nat(255), async (image, at, byte) => {
      const bytes = Buffer.from(image);
      bytes[at % bytes.length] = byte;
      try {
        assert.equal((await elfOfBzImage(bytes)).length, elf.length);
      } catch (error) {
        assert.ok(isFault(error), String(error));
      }
    }),
    { seed: 11, numRuns: 500 },
  );
  assert.throws(() => bzPayload(Buffer.alloc(100)), isFault);
});

test('LZ4: what the lz4 program packs comes back; garbage is a RangeError', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom('ab', 'abc', 'x', '\0'.repeat(300), 'nexus'), { maxLength: 400 }),
      async parts => {
        const data = Buffer.from(`${parts.join('')}end`);
        assert.ok((await lz4Legacy(run(['lz4', '-l', '-9', '-c'], data), data.length)).equals(data));
      },
    ),
    { seed: 3, numRuns: 25 },
  );
  const big = Buffer.alloc(20_000_000, 'a long text that goes over two blocks of 8 MiB, ');
  assert.ok((await lz4Legacy(run(['lz4', '-l', '-c'], big), big.length)).equals(big));
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async bytes => {
      const head = Buffer.from([2, 0x21, 0x4c, 0x18, bytes.length & 255, bytes.length >> 8, 0, 0]);
      await lz4Legacy(Buffer.concat([head, bytes]), 1000).catch(error => assert.ok(error instanceof RangeError, error));
    }),
    { seed: 5, numRuns: 1000 },
  );
});

test('ELF readers survive any bytes', () => {
  const elf = makeElf(600);
  const ask = (bytes: Buffer) => {
    for (const question of [() => hasPvh(bytes), () => elfSection(bytes, '.modinfo')])
      try {
        question();
      } catch (error) {
        assert.ok(error instanceof RangeError, String(error));
      }
  };
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(599), fc.nat(255)), { maxLength: 20 }), flips => {
      const bytes = Buffer.from(elf);
      for (const [at, byte] of flips) bytes[at] = byte;
      ask(bytes);
    }),
    { seed: 13, numRuns: 2000 },
  );
});

test('cpio: the program reads what was written: names, modes, contents, order', () => {
  const name = fc.stringMatching(/^[a-z0-9._+-]{1,12}$/).filter(n => n !== '.' && n !== '..');
  fc.assert(
    fc.property(fc.dictionary(name, fc.uint8Array({ maxLength: 50 }), { minKeys: 1, maxKeys: 8 }), tree => {
      const files = Object.entries(tree).map(
        ([path, data]): CpioEntry => ({ path: `d/${path}`, type: 'file', mode: 0o640, data: Buffer.from(data) }),
      );
      const archive = cpio(withFolders(files));
      assert.equal(archive.length % 4, 0);
      const names = run(['cpio', '-t', '--quiet'], archive).toString().trim().split('\n');
      assert.deepEqual(names, ['d', ...files.map(f => f.path).sort()]);
      for (const f of files.slice(0, 2))
        assert.ok(run(['cpio', '-i', '--to-stdout', '--quiet', f.path], archive).equals(f.data ?? Buffer.alloc(0)));
    }),
    { seed: 17, numRuns: 15 },
  );
  for (const path of ['/abs', '', 'a\0b', 'TRAILER!!!'])
    assert.throws(() => cpio([{ path, type: 'file', mode: 0o644 }]), RangeError);
});

test('the initramfs is the modules, then the agent with what it mounts on', async () => {
  const agent = join(dir, 'agent');
  const modules = join(dir, 'modules.cpio');
  const out = join(dir, 'initrd.cpio');
  await writeFile(agent, 'not really a program');
  await writeFile(modules, cpio([{ path: 'lib', type: 'dir', mode: 0o755 }]).subarray(0, -3)); // not padded
  await writeInitrd({ modules, agent, out, signal: new AbortController().signal });
  const listing = run(['cpio', '-tv', '--quiet'], await agentCpio(agent)).toString();
  for (const line of [/^crw-------.* 5, +1 .* dev\/console$/m, /^-rwxr-xr-x.* init$/m, /^drwxr-xr-x.* newroot$/m])
    assert.match(listing, line);
  const bytes = await readFile(out);
  const at = bytes.indexOf(await agentCpio(agent));
  assert.ok(at > 0 && at % 4 === 0);
  assert.equal(bytes.subarray(0, at - (at % 4)).toString('latin1', 0, 6), '070701');
});

test('an initramfs that cannot be written whole is not there at all', async () => {
  const out = join(dir, 'none.cpio');
  const modules = join(dir, 'missing.cpio');
  const agent = join(dir, 'agent2');
  await writeFile(agent, 'x');
  const before = await readdir(dir);
  await assert.rejects(writeInitrd({ modules, agent, out, signal: new AbortController().signal }));
  await writeFile(modules, Buffer.alloc(8_000_000));
  await assert.rejects(writeInitrd({ modules, agent, out, signal: AbortSignal.abort(new Fault('canceled', 'stop')) }));
  await assert.rejects(
    writeInitrd({ modules, agent: join(dir, 'nobody'), out, signal: new AbortController().signal }),
    (error: Fault) => error.code === 'host',
  );
  assert.deepEqual(await readdir(dir), [...before, 'missing.cpio'].sort());
});

test('releases: newest first by number, no meta, debug or unsigned packages; a series is not a prefix', () => {
  const names = ['6.1.0-9', '6.12.9+deb12', '6.1.0-10', '6.12.117+deb12', '6.12'].map(
    r => `linux-image-${r}-cloud-amd64`,
  );
  const others = [
    'linux-image-6.1.0-9-cloud-amd64-dbg',
    'linux-image-6.1.0-9-cloud-amd64-unsigned',
    'linux-image-amd64',
  ];
  const found = cloudReleases([...names, ...others]).map(r => r.replace('-cloud-amd64', ''));
  assert.deepEqual(found, ['6.12.117+deb12', '6.12.9+deb12', '6.1.0-10', '6.1.0-9']);
  assert.equal(matches('6.12.9+deb12-cloud-amd64', '6.1'), false);
  for (const version of ['6.12', '6.12.9', '6.12.9+deb12', '6.12.9+deb12-cloud-amd64', undefined])
    assert.equal(matches('6.12.9+deb12-cloud-amd64', version), true);
});

test('modules are loaded after what they depend on, also where they depend on each other', async () => {
  const make = (name: string, depends: string[]): KernelModule => ({
    name,
    path: `kernel/${name}.ko`,
    data: Buffer.alloc(0),
    depends,
    aliases: [],
  });
  const all = new Map([
    ['virtio_mmio', make('virtio_mmio', ['virtio'])],
    ['virtio', make('virtio', ['ring', 'builtin_one'])],
    ['ring', make('ring', ['virtio'])],
    ['virtio_blk', make('virtio_blk', ['virtio'])],
    ['unrelated', make('unrelated', [])],
    ['asked_for', make('asked_for', [])],
  ]);
  const found = await closure(new Set(all.keys()), ['asked_for', 'not_there'], async names =>
    names.flatMap(n => all.get(n) ?? []),
  );
  assert.deepEqual([...found.keys()].sort(), ['asked_for', 'ring', 'virtio', 'virtio_blk', 'virtio_mmio']);
  assert.deepEqual(
    bootOrder(found).map(m => m.name),
    ['ring', 'virtio', 'virtio_mmio', 'virtio_blk'],
  );
});

test('a module index refuses keys that kmod could not look up', () => {
  assert.throws(() => moduleIndex([{ key: 'naïve', value: '' }]), RangeError);
  assert.throws(() => moduleIndex([{ key: '', value: '' }]), RangeError);
});

test("apt's words become the right fault", () => {
  const code = (text: string) => aptFault('try', text).code;
  assert.equal(code('E: Failed to fetch x  Hash Sum mismatch'), 'unverified');
  assert.equal(code("E: The repository 'x' is not signed."), 'unverified');
  assert.equal(code('E: Write error - write (28: No space left on device)'), 'no_room');
  assert.equal(code('E: Could not resolve host'), 'host');
  assert.match(aptFault('try', 'W: a\nE: Could not resolve.').message, /^Cannot try: apt says: Could not resolve\.$/);
});
