/** Pipelines that land, from places laid out as the real ones, and everything in their proofs and archives that makes them refuse. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import type { JobProgress } from '../src/api/job.ts';
import type { Pipeline, Stage } from '../src/api/pipeline.ts';
import { run } from '../src/lib/proc.ts';
import { type Lander, lander } from './kit/land.ts';
import { alpine, anvilRelease, firecrackerRelease, github, sha256, xz } from './kit/layouts.ts';
import { type Mirror, openMirror } from './kit/mirror.ts';
import { makeElf, makePackages, RELEASE } from './kit/packages.ts';
import { expiring, makeSigner, revoked, type Signer } from './kit/signer.ts';
import { archive, entry, type Item } from './kit/tar.ts';

let mirror: Mirror;
let t: Lander;
let signer: Signer;
before(async () => {
  [mirror, t, signer] = await Promise.all([openMirror(), lander(), makeSigner()]);
});
after(async () => {
  await mirror[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});

/** Bytes that compress by half. */
const kernel = (size: number): Buffer => {
  const bytes = randomBytes(size);
  for (let i = 0; i < size; i += 128) bytes.fill(0, i, i + 64);
  return bytes;
};

const ANVIL: Pipeline = [
  { stage: 'http', url: '{base}/{asset}.xz' },
  { stage: 'pgp', document: '{base}/SHA256SUMS', signature: '{base}/SHA256SUMS.asc' },
  { stage: 'sha256', expect: { url: '{base}/SHA256SUMS', name: '{asset}.xz' } },
  { stage: 'xz' },
  { stage: 'sha256', expect: { url: '{base}/SHA256SUMS', name: '{asset}' } },
];
let releases = 0;
/** A release of Anvil's that nothing is wrong with; the caller spoils it. */
const release = async (by: Signer = signer, data = kernel(300_000)) => {
  const repo = `Work-Fort/Anvil${releases++}`;
  const made = await anvilRelease(by, '6.18.9', { x86_64: data });
  github(mirror, repo, [made]);
  const path = `/${repo}/releases/download/v6.18.9`;
  const vars = { base: `${mirror.origin}${path}`, asset: 'vmlinux-6.18.9-x86_64' };
  const packed = Buffer.from(made.assets['vmlinux-6.18.9-x86_64.xz'] ?? '');
  return { path, vars, data, packed, sums: String(made.assets.SHA256SUMS), more: { vars, keys: [by.pinned] } };
};

test('a kernel of Anvil: signature, checksum, xz, checksum', async () => {
  const { vars, data, more } = await release();
  const stages: JobProgress[] = [];
  const landed = await t.land(ANVIL, { ...more, onProgress: p => stages.push(p) });
  assert.ok(landed.bytes.equals(data));
  assert.deepEqual(landed.file, { sha256: sha256(data), size_bytes: data.length });
  assert.deepEqual(landed.proofs, ['pgp', 'sha256']);
  assert.equal(landed.source, `${vars.base}/${vars.asset}.xz`);
  assert.equal(stages[0]?.stage, 'checksums');
  const last = stages.at(-1);
  assert.ok(last !== undefined && last.stage === 'download' && last.done === last.total && last.unit === 'bytes');
});

test('a Firecracker: the two programs out of its archive, and never the debug file', async () => {
  const made = firecrackerRelease('1.12.0', 'x86_64', { firecracker: makeElf(9000), jailer: makeElf(5000) });
  github(mirror, 'firecracker-microvm/firecracker', [made]);
  const url = `${mirror.origin}/firecracker-microvm/firecracker/releases/download/v1.12.0/firecracker-v1.12.0-x86_64.tgz`;
  const landed = await t.land([
    { stage: 'http', url },
    { stage: 'sha256', expect: { url: `${url}.sha256.txt`, name: 'firecracker-v1.12.0-x86_64.tgz' } },
    { stage: 'gzip' },
    {
      stage: 'member',
      archive: 'tar',
      name: 'release-v1.12.0-x86_64/firecracker-v1.12.0-x86_64',
      beside: { jailer: 'release-v1.12.0-x86_64/jailer-v1.12.0-x86_64' },
    },
  ]);
  assert.ok(landed.bytes.equals(makeElf(9000)));
  assert.deepEqual(landed.beside.jailer, { sha256: sha256(makeElf(5000)), size_bytes: 5000 });
});

test("Alpine's minirootfs, decompressed", async () => {
  const tar = archive({ name: './etc/os-release', data: 'ID=alpine\n' });
  alpine(mirror, 'x86_64', [['3.21.3', gzipSync(tar)]]);
  const url = `${mirror.origin}/alpine/v3.21/releases/x86_64/alpine-minirootfs-3.21.3-x86_64.tar.gz`;
  const sum: Stage = { stage: 'sha256', expect: { url: `${url}.sha256`, name: '{file}' } };
  const vars = { file: 'alpine-minirootfs-3.21.3-x86_64.tar.gz' };
  const landed = await t.land([{ stage: 'http', url }, sum, { stage: 'gzip' }], { vars });
  assert.ok(landed.bytes.equals(tar));
  assert.deepEqual(landed.proofs, ['sha256']);
});

test('a package of the distribution: apt, its member, the kernel inside; the rest passes by', async () => {
  const path = join(t.root, 'apt');
  await makePackages(path);
  const before = process.env.PATH;
  process.env.PATH = `${path}:${before}`;
  try {
    const passed: string[] = [];
    const pipeline: Pipeline = [
      { stage: 'apt', package: 'linux-image-{release}' },
      { stage: 'member', archive: 'deb', name: 'boot/vmlinuz-{release}', beside: {} },
      { stage: 'bzimage' },
    ];
    const collect = async ({ path }: { path: string }) => void passed.push(path);
    const landed = await t.land(pipeline, { vars: { release: RELEASE }, collect });
    assert.ok(landed.bytes.equals(makeElf()));
    assert.deepEqual(passed, [`lib/modules/${RELEASE}/modules.builtin`]);
    assert.deepEqual([landed.proofs, landed.source], [['apt'], `linux-image-${RELEASE} 1`]);
    const suite = await t.land([{ stage: 'apt', suite: '{version}' }], { vars: { version: '12' } });
    assert.equal(suite.source, 'debian bookworm');
  } finally {
    process.env.PATH = before;
  }
});

test('a local file, and every form of compression', async () => {
  const data = kernel(70_000);
  for (const [stage, packed] of [
    ['none', data],
    ['xz', await xz(data)],
    ['gzip', gzipSync(data)],
    ['zstd', zstdCompressSync(data)],
  ] as const) {
    const path = join(t.root, stage);
    await writeFile(path, packed);
    const landed = await t.land([{ stage: 'file', path }, { stage }], { unverified: true });
    assert.ok(landed.bytes.equals(data), stage);
    assert.deepEqual([landed.proofs, landed.source], [['none'], path]);
  }
});

test('what is no regular file is refused, and soon', async () => {
  const fifo = join(t.root, 'fifo');
  await run(['mkfifo', fifo]);
  await mkdir(join(t.root, 'folder'));
  await symlink(join(t.root, 'gone'), join(t.root, 'dangling'));
  const from = (path: string): Pipeline => [{ stage: 'file', path }];
  for (const name of ['fifo', 'folder'])
    await t.refused('invalid', /regular|opened/, from(join(t.root, name)), { unverified: true });
  for (const name of ['missing', 'dangling'])
    await t.refused('not_found', /no such file/, from(join(t.root, name)), { unverified: true });
  await t.refused('invalid', /absolute/, from('some/file'), { unverified: true });
});

test('a pipeline that proves nothing runs only where that is said', async () => {
  const url = mirror.put('/plain', 'bytes');
  await t.refused('unverified', /nothing proves/, [{ stage: 'http', url }]);
  assert.deepEqual((await t.land([{ stage: 'http', url }], { unverified: true })).proofs, ['none']);
  const signed: Stage = { stage: 'pgp', document: mirror.put('/plain.txt', await signer.clear('a text')) };
  await t.refused('unverified', /nothing proves/, [{ stage: 'http', url }, signed], { keys: [signer.pinned] });
  const beside: Stage = { stage: 'member', archive: 'tar', name: 'a', beside: { b: 'b' } };
  const late: Stage = { stage: 'sha256', expect: { hash: sha256('bytes') } };
  await t.refused('unverified', /nothing proves/, [{ stage: 'http', url }, beside, late]);
});

test('templates: an unknown name, a value that leads elsewhere, another protocol, a password', async () => {
  const from = (url: string): Pipeline => [{ stage: 'http', url }];
  const more = { unverified: true, vars: { up: '..', version: '1' } };
  await t.refused('invalid', /nothing is known as \{nobody\}/, from('https://localhost/{nobody}'), more);
  await t.refused('invalid', /as a URL/, from('https://localhost/a/{up}/b'), more);
  await t.refused('invalid', /only https/, from('http://localhost/{version}'), more);
  await t.refused('invalid', /no name and password/, from('https://me:secret@localhost/'), more);
  await t.refused('invalid', /no URL/, from('localhost'), more);
});

test('an asset that is not what was signed: nothing lands', async () => {
  const { path, vars, packed, data, more } = await release();
  const asset = `${path}/${vars.asset}.xz`;
  const flipped = (bytes: Buffer, at: number) => {
    const copy = Buffer.from(bytes);
    copy[at] = (copy[at] ?? 0) ^ 1;
    return copy;
  };
  const other = await xz(kernel(1000));
  for (const [what, bytes] of [
    ['truncated', packed.subarray(0, -100)],
    ['empty', Buffer.alloc(0)],
    ['the first bit', flipped(packed, 0)],
    ['a bit in the middle', flipped(packed, packed.length >> 1)],
    ['a bit of the check', flipped(packed, packed.length - 20)],
    ['the last bit', flipped(packed, packed.length - 1)],
    ['right length, wrong bytes', randomBytes(packed.length)],
    ['another kernel', other],
    ['two members', Buffer.concat([packed, packed])],
    ['garbage behind it', Buffer.concat([packed, Buffer.from('garbage')])],
    ['not packed', data],
  ] as const) {
    mirror.store(asset, bytes);
    const error = await t.refused('unverified', /./, ANVIL, more);
    assert.match(error.message, /SHA-256|unpack/i, what);
  }
});

test('both checksums hold: what is packed well, but unpacks to another kernel than the one that was signed', async () => {
  const { path, vars, data, packed, more } = await release();
  const [name, other] = [`${vars.asset}`, sha256(kernel(1000))];
  const lists = {
    'another kernel': `${sha256(packed)}  ${name}.xz\n${other}  ${name}\n`,
    'the two of them swapped': `${sha256(data)}  ${name}.xz\n${sha256(packed)}  ${name}\n`,
    'only the packed one': `${sha256(packed)}  ${name}.xz\n`,
    'only the other one': `${sha256(data)}  ${name}\n`,
    'those of another version': `${sha256(packed)}  ${name.replace('9', '8')}.xz\n${sha256(data)}  ${name.replace('9', '8')}\n`,
  };
  for (const [what, list] of Object.entries(lists)) {
    mirror.store(`${path}/SHA256SUMS`, list);
    mirror.store(`${path}/SHA256SUMS.asc`, await signer.detached(list));
    const { message } = await t.refused('unverified', /SHA-256|there is none for/, ANVIL, more);
    assert.ok(message.includes(name), `${what}: ${message}`);
  }
});

test('a signature is of the list, of a pinned key, and nobody else', async () => {
  const { path, sums, more } = await release();
  const sign = (text: string | Promise<string>) =>
    Promise.resolve(text).then(content => mirror.store(`${path}/SHA256SUMS.asc`, content));
  const stranger = await makeSigner();
  const refused = (says: RegExp, by = more) => t.refused('unverified', says, ANVIL, by);
  await sign(signer.detached(`${sums}\n`));
  await refused(/signature is not good/);
  await sign(stranger.detached(sums));
  await refused(/unknown key/);
  await sign('not a signature');
  await refused(/signature/);
  await sign(signer.armored);
  await refused(/signature/);
  await sign('');
  await refused(/signature/);
  await sign(signer.detached(sums));
  await refused(/no key/, { ...more, keys: [] });
  await refused(/is another one/, { ...more, keys: [{ ...signer.pinned, armored: stranger.armored }] });
  await refused(/cannot be read/, { ...more, keys: [{ ...signer.pinned, armored: 'no key' }] });
  await refused(/revoked/, { ...more, keys: [await revoked(signer)] });
  mirror.store(
    `${path}/SHA256SUMS`,
    sums.replace(/^./, c => (c === '0' ? '1' : '0')),
  );
  await refused(/signature is not good/);
  mirror.store(`${path}/SHA256SUMS`, sums);
  await t.land(ANVIL, { ...more, keys: [stranger.pinned, signer.pinned] });
  const asked = mirror.seen.filter(s => s.url.startsWith(path) && s.url.endsWith('.xz')).length;
  assert.equal(asked, 1, 'the kernel is asked for when its list is proven, and not before');
});

test('an expired key: only if its row allows it, only what it signed while it was valid', async () => {
  const day = 86_400_000;
  const made = new Date(Date.now() - 30 * day);
  const old = await makeSigner({ made, lives_s: 10 * 86_400 });
  const { path, sums, vars } = await release();
  const allowed = { vars, keys: [{ ...old.pinned, allow_expired: true }] };
  const signAt = async (days: number) =>
    mirror.store(`${path}/SHA256SUMS.asc`, await old.detached(sums, new Date(made.getTime() + days * day)));
  await signAt(5);
  await t.land(ANVIL, allowed);
  await t.refused('unverified', /cannot sign any more/, ANVIL, { vars, keys: [old.pinned] });
  const late = await makeSigner({ made });
  const ended = { vars, keys: [{ ...(await expiring(late, 10 * 86_400)), allow_expired: true }] };
  mirror.store(`${path}/SHA256SUMS.asc`, await late.detached(sums, new Date(made.getTime() + 5 * day)));
  await t.land(ANVIL, ended);
  mirror.store(`${path}/SHA256SUMS.asc`, await late.detached(sums));
  await t.refused('unverified', /not good.*expired/, ANVIL, ended);
  mirror.store(`${path}/SHA256SUMS.asc`, await late.detached(sums, new Date(Date.now() + 5 * day)));
  await t.refused('unverified', /future/, ANVIL, { vars, keys: [late.pinned] });
});

test('a signed text: what stands outside of it does not count', async () => {
  const { path, sums, vars, more } = await release();
  const clear: Pipeline = ANVIL.map(s => (s.stage === 'pgp' ? { stage: 'pgp', document: '{base}/SHA256SUMS' } : s));
  const text = await signer.clear(sums);
  const serve = (content: string) => mirror.store(`${path}/SHA256SUMS`, content);
  serve(text);
  await t.land(clear, more);
  serve(text.replaceAll('\n', '\r\n').replaceAll('\r\r', '\r'));
  await t.land(clear, more);
  const evil = sums.replaceAll(/^./gm, c => (c === '0' ? '1' : '0'));
  for (const outside of [
    `${evil}${text}`,
    `${text}\n${evil}`,
    `${text}${await signer.clear(evil)}`,
    text.replace('\n-----BEGIN PGP SIG', `\n${evil}\n-----BEGIN PGP SIG`),
    text.replace('\n\n', `\nComment: ${evil.split('\n')[0]}\n\n`),
    sums,
  ]) {
    serve(outside);
    await t.refused('unverified', /./, clear, { vars, keys: more.keys });
  }
});

test('a signed hash without a name proves nothing: it could be of another version', async () => {
  const data = Buffer.from('some file');
  const url = mirror.put('/lone/file.bin', data);
  const list = `${mirror.origin}/lone/list`;
  const pipeline: Pipeline = [
    { stage: 'http', url },
    { stage: 'pgp', document: list },
    { stage: 'sha256', expect: { url: list, name: 'file.bin' } },
  ];
  mirror.put('/lone/list', await signer.clear(`${sha256(data)}  file.bin\n`));
  assert.deepEqual((await t.land(pipeline, { keys: [signer.pinned] })).proofs, ['pgp', 'sha256']);
  mirror.put('/lone/list', await signer.clear(`${sha256(data)}\n`));
  await t.refused('unverified', /a hash without a name/, pipeline, { keys: [signer.pinned] });
});

test('a detached signature of the stream itself', async () => {
  const data = kernel(2_000_000);
  const sub = await makeSigner({ subkey: true });
  const url = mirror.store('/signed', data);
  const signature = mirror.put('/signed.sig', await sub.detached(data));
  const pipeline: Pipeline = [
    { stage: 'http', url },
    { stage: 'pgp', signature },
  ];
  const landed = await t.land(pipeline, { keys: [sub.pinned] });
  assert.deepEqual([landed.proofs, landed.file.sha256], [['pgp'], sha256(data)]);
  mirror.misbehave('/signed', { flip: 1_999_999 });
  await t.refused('unverified', /signature is not good/, pipeline, { keys: [sub.pinned] });
  mirror.misbehave('/signed', { cut: 1000 });
  await t.refused('host', /attempts/, pipeline, { keys: [sub.pinned] });
  mirror.misbehave('/signed', undefined);
  await t.refused('unverified', /unknown key/, pipeline, { keys: [signer.pinned] });
});

test('lists of checksums in every form; what is ambiguous or missing is refused', async () => {
  const data = Buffer.from('some file');
  const [hash, other] = [sha256(data), sha256('x')];
  const url = mirror.put('/sums/file.bin', data);
  const list = `${mirror.origin}/sums/list`;
  const pipeline: Pipeline = [
    { stage: 'http', url },
    { stage: 'sha256', expect: { url: list, name: 'file.bin' } },
  ];
  for (const good of [
    `${other}  a\n${hash}  file.bin\n${other}  b\n`,
    `${hash} *file.bin`,
    `${hash}  ./file.bin\r\n${other} *x\r\n`,
    `SHA512 (file.bin) = ${other}${other}\nSHA256 (x) = ${other}\nSHA256 (file.bin) = ${hash}\n`,
    `${hash.toUpperCase()}  file.bin\n\n${hash}  file.bin\n`,
    `# comment\n${hash}\tfile.bin\n`,
    `${hash}\n`,
    `${hash}`,
  ]) {
    mirror.put('/sums/list', good);
    await t.land(pipeline);
  }
  for (const [says, bad] of [
    [/none for file.bin/, ''],
    [/none for file.bin/, `${hash}  file.bin.sig\n`],
    [/none for file.bin/, `${hash}  dir/file.bin\n`],
    [/none for file.bin/, `${hash}x  file.bin\n${hash.slice(1)}  file.bin\n`],
    [/none for file.bin/, `${hash}\n${hash}\n`],
    [/none for file.bin/, `Not Found`],
    [/two for file.bin/, `${hash}  file.bin\n${other}  ./file.bin\n`],
    [/two for file.bin/, `${hash}  file.bin\nSHA256 (file.bin) = ${other}\n`],
    [/SHA-256 is/, `${other}  file.bin\n`],
    [/SHA-256 is/, other],
    [/no text/, Buffer.from([0xff, 0xfe, 0])],
    [/no text/, `${hash}  file.bin\0\n`],
  ] as const) {
    mirror.put('/sums/list', bad);
    await t.refused('unverified', says, pipeline);
  }
  mirror.put('/sums/list', 'x'.repeat(5_000_000));
  await t.refused('unsupported', /longer than/, pipeline);
  mirror.misbehave('/sums/list', { html: true });
  await t.refused('unverified', /web page/, pipeline);
  mirror.misbehave('/sums/list', { status: 404 });
  await t.refused('not_found', /not there/, pipeline);
  for (const hash of ['', 'abc', 'g'.repeat(64)])
    await t.refused(
      'unverified',
      /no SHA-256/,
      [
        { stage: 'http', url },
        { stage: 'sha256', expect: { hash: `${hash}{e}` } },
      ],
      {
        vars: { e: '' },
      },
    );
});

test('one compressed member and nothing behind it; never more than the ceiling', async () => {
  const data = kernel(50_000);
  const forms = { xz: await xz(data), gzip: gzipSync(data), zstd: zstdCompressSync(data) };
  const zeros = Buffer.alloc(40_000_000);
  const bombs = { xz: await xz(zeros), gzip: gzipSync(zeros), zstd: zstdCompressSync(zeros) };
  for (const stage of ['xz', 'gzip', 'zstd'] as const) {
    const whole = forms[stage];
    const pipeline: Pipeline = [{ stage: 'http', url: `${mirror.origin}/one/${stage}` }, { stage }];
    for (const [what, bytes] of [
      ['two members', Buffer.concat([whole, whole])],
      [
        'an empty one behind it',
        Buffer.concat([whole, { xz: await xz(Buffer.of()), gzip: gzipSync(''), zstd: zstdCompressSync('') }[stage]]),
      ],
      ['zeros behind it', Buffer.concat([whole, Buffer.alloc(512)])],
      ['garbage behind it', Buffer.concat([whole, Buffer.from('garbage, and more of it')])],
      ['cut', whole.subarray(0, -1)],
      ['nothing', Buffer.alloc(0)],
      ['something else', data],
    ] as const) {
      mirror.put(`/one/${stage}`, bytes);
      const error = await t.refused('unverified', /Cannot unpack/, pipeline, { unverified: true });
      assert.ok(error.message.length < 400, what);
    }
    mirror.put(`/one/${stage}`, bombs[stage]);
    const limits = { download_bytes: 1_000_000, output_bytes: 1_000_000 };
    await t.refused('unsupported', /larger than/, pipeline, { unverified: true, limits });
  }
});

test('a member is one regular file of exactly that name', async () => {
  const file: Item = { name: 'dir/program', data: makeElf(2000), mode: 0o755 };
  const pipeline: Pipeline = [
    { stage: 'http', url: `${mirror.origin}/archive.tar` },
    { stage: 'member', archive: 'tar', name: 'dir/program', beside: { other: 'dir/other' } },
  ];
  const other: Item = { name: './dir/other', data: 'other' };
  const long = archive(other, entry({ name: '././@LongLink', type: 'L', data: 'dir/program\0', magic: 'ustar  \0' }), {
    ...file,
    name: 'cut',
    magic: 'ustar  \0',
  });
  for (const good of [archive(file, other), archive(other, { ...file, name: './dir/program' }), long]) {
    mirror.put('/archive.tar', good);
    assert.ok((await t.land(pipeline, { unverified: true })).bytes.equals(makeElf(2000)));
  }
  for (const [says, bad] of [
    [/no regular file \(symlink/, archive(other, { name: 'dir/program', type: '2', link: '/etc/passwd' })],
    [/no regular file \(link/, archive(other, { name: 'dir/program', type: '1', link: 'dir/other' })],
    [/no regular file \(dir/, archive(other, { name: 'dir/program/', type: '5' })],
    [/no regular file/, archive(other, { name: 'dir/program', type: 'S', data: 'sparse', magic: 'ustar  \0' })],
    [
      /sparse/,
      archive(other, {
        name: 'GNUSparseFile.0/x',
        data: 'map',
        pax: [
          ['GNU.sparse.name', 'dir/program'],
          ['GNU.sparse.major', '1'],
        ],
      }),
    ],
    [/twice/, archive(file, other, file)],
    [/twice/, archive(file, other, { name: './dir/program', type: '2', link: 'dir/other' })],
    [/not in it/, archive(file)],
    [/not in it/, archive(other, { name: 'dir/program.debug', data: 'x' })],
    [/not in it/, archive(other, { name: '../dir/program', data: 'x' })],
    [/not in it/, archive(other, { name: 'DIR/program', data: 'x' })],
    [/a size that cannot be/, archive(other, { ...file, patch: block => void block.fill(0xd8, 124, 125) })],
    [/Cannot read the archive/, archive(other, { ...file, patch: block => void block.fill(0xff, 124, 135) })],
    [/Cannot read the archive/, archive(other, file).subarray(0, 2000)],
    [/Cannot read the archive/, Buffer.alloc(4096, 'no tar')],
    [/not in it/, Buffer.alloc(0)],
  ] as const) {
    mirror.put('/archive.tar', bad);
    await t.refused('unsupported', says, pipeline, { unverified: true });
  }
});
