/**
 * The places from which assets come, on a mirror of the test's own, and a daemon that knows no others: releases of Anvil and of
 * Firecracker, Alpine's tree. What they hold is small and of the right shape; the Firecrackers run and say their version.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { alpine, anvilRelease, firecrackerRelease, type GitHub, github, type Release } from './layouts.ts';
import { type Mirror, openMirror } from './mirror.ts';
import { makeElf } from './packages.ts';
import { makeSigner, type Signer } from './signer.ts';
import { archive } from './tar.ts';
import { type World, type WorldOptions, world } from './world.ts';

/** An ELF for x86_64, without a library: `code` and, behind it, `data`. */
const program = (code: Buffer, data: string): Buffer => {
  const head = Buffer.alloc(120);
  const body = Buffer.concat([code, Buffer.from(data)]);
  const size = BigInt(head.length + body.length);
  head.write('\x7fELF\x02\x01\x01', 'latin1'); // 64 bits, little endian, EV_CURRENT
  head.writeUInt16LE(2, 16); // ET_EXEC
  head.writeUInt16LE(62, 18);
  head.writeUInt32LE(1, 20);
  head.writeBigUInt64LE(0x400078n, 24); // entry, behind the headers
  head.writeBigUInt64LE(64n, 32);
  head.writeUInt16LE(64, 52);
  head.writeUInt16LE(56, 54);
  head.writeUInt16LE(1, 56);
  head.writeUInt32LE(1, 64); // PT_LOAD
  head.writeUInt32LE(5, 68); // readable, executable
  head.writeBigUInt64LE(0x400000n, 80);
  head.writeBigUInt64LE(0x400000n, 88);
  head.writeBigUInt64LE(size, 96);
  head.writeBigUInt64LE(size, 104);
  head.writeBigUInt64LE(4096n, 112);
  return Buffer.concat([head, body]);
};

/** A program that writes a text and ends. */
export const sayingElf = (text: string): Buffer => {
  const said = `${text}\n`;
  const length = Buffer.alloc(4);
  length.writeUInt32LE(Buffer.byteLength(said));
  const write = Buffer.from('b801000000bf01000000488d3510000000ba', 'hex'); // write(1, what is behind the code, so much)
  const exit = Buffer.from('0f05b83c00000031ff0f05', 'hex'); // exit(0)
  return program(Buffer.concat([write, length, exit]), said);
};

/** A program that becomes another one, with its own arguments and environment. `mark` makes it differ from others that do so. */
export const becomingElf = (path: string, mark = ''): Buffer => {
  // execve(path, argv, envp) out of what lies on the stack; exit(127)
  const code = '488b0424488d742408488d54c410488d3d13000000b83b0000000f05bf7f000000b83c0000000f05';
  return program(Buffer.from(code, 'hex'), `${path}\0${mark}`);
};

/** What may be had of a kernel: an ELF of its own for each version. */
export const kernelElf = (size = 60_000): Buffer => Buffer.concat([makeElf(4096), randomBytes(size)]);

const imageOf = (): Buffer => {
  const image = randomBytes(20_000);
  image.write('ARM\x64', 56, 'latin1');
  return image;
};

/** A minirootfs, as .tar.gz. */
export const minirootfs = (version: string): Buffer =>
  gzipSync(
    archive(
      { name: './', type: '5', mode: 0o755 },
      { name: './etc/', type: '5', mode: 0o755 },
      { name: './etc/alpine-release', data: `${version}\n` },
      { name: './bin/', type: '5', mode: 0o755 },
      { name: './bin/busybox', mode: 0o755, data: randomBytes(30_000) },
    ),
  );

export const firecrackers = (version: string, said = version): Release =>
  firecrackerRelease(version, 'x86_64', {
    firecracker: sayingElf(`Firecracker v${said}\n\nSupported snapshot data format versions: v1.0.0`),
    jailer: sayingElf(`Jailer v${said}`),
  });

export const ANVIL = 'Work-Fort/Anvil';
export const FIRECRACKER = 'firecracker-microvm/firecracker';

export interface Sources extends AsyncDisposable {
  mirror: Mirror;
  signer: Signer;
  anvil: GitHub;
  firecracker: GitHub;
  /** What the daemon needs in its environment to trust the mirror. */
  env: Record<string, string>;
  /** Points the providers of a daemon at the mirror, through the command line. */
  point(w: World): Promise<void>;
  /** Requests for paths that end so, on the host that has the names. */
  asked(end: string): number;
}

const anvilReleases = async (signer: Signer): Promise<Release[]> => {
  const kernels = (both: boolean) => ({ x86_64: kernelElf(), ...(both ? { aarch64: imageOf() } : {}) });
  const draft = await anvilRelease(signer, '6.19.1', kernels(false));
  const trial = await anvilRelease(signer, '6.19.0', kernels(false));
  return [
    { ...draft, draft: true },
    { ...trial, prerelease: true },
    { tag: 'cli-v9.9.9', assets: { 'anvil-x86_64': 'the program' } },
    await anvilRelease(signer, '6.18.10', { aarch64: imageOf() }),
    await anvilRelease(signer, '6.18.9', kernels(true)),
    { tag: 'cli-v0.3.0', assets: { 'anvil-x86_64': 'the program' } },
    await anvilRelease(signer, '6.18.2', kernels(false)),
    await anvilRelease(signer, '6.12.40', kernels(true)),
  ];
};

export const openSources = async (): Promise<Sources> => {
  const [mirror, signer] = [await openMirror(), await makeSigner()];
  const anvil = github(mirror, ANVIL, await anvilReleases(signer));
  const firecracker = github(mirror, FIRECRACKER, [
    firecrackers('1.13.0'),
    { ...firecrackers('1.12.9'), draft: true },
    firecrackers('1.12.0'),
  ]);
  for (const hub of [anvil, firecracker]) hub.page = 2;
  const versions = ['3.20.6', '3.21.2', '3.21.3', '3.22.0'];
  alpine(
    mirror,
    'x86_64',
    versions.map(version => [version, minirootfs(version)] as const),
  );
  const dir = await mkdtemp(join(tmpdir(), 'nexus-sources-'));
  const keys = join(dir, 'keys.json');
  await writeFile(keys, JSON.stringify([signer.pinned]));
  const ctl = async (w: World, ...args: string[]) => {
    const { code, stderr } = await w.ctl('provider', 'update', ...args);
    assert.equal(code, 0, stderr);
  };
  return {
    ...{ mirror, signer, anvil, firecracker },
    env: { NODE_EXTRA_CA_CERTS: mirror.ca, NEXUS_GITHUB_TOKEN: '', GITHUB_TOKEN: '', NEXUS_GITHUB_API: '' },
    point: async w => {
      const hub = ['--config', `api=${mirror.origin}/api`, '--config', `base=${mirror.origin}`];
      await Promise.all([
        ctl(w, 'anvil', ...hub, '--keys', `@${keys}`),
        ctl(w, 'firecracker', ...hub),
        ctl(w, 'alpine', '--config', `base=${mirror.origin}/alpine`),
      ]);
    },
    asked: end =>
      mirror.seen.filter(one => one.host === 'origin' && new URL(one.url, mirror.origin).pathname.endsWith(end)).length,
    [Symbol.asyncDispose]: async () => {
      await mirror[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

/** A daemon that knows these sources. */
export const sourced = async (sources: Sources, options: WorldOptions = {}): Promise<World> => {
  const w = await world({ ...options, env: { ...sources.env, ...options.env } });
  try {
    await sources.point(w);
    return w;
  } catch (error) {
    await w[Symbol.asyncDispose]();
    throw error;
  }
};
