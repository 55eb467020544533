/**
 * The providers that come with Nexus: rows, not code. A store takes them when it first sees their number; who changes or removes
 * one keeps what he did (src/store/provider.ts). `since` grows with each shipment that brings a new one.
 */
import type { ProviderBody } from '../api/provider.ts';
import { ANVIL_KEYS } from './anvil_keys.ts';

export interface Shipped extends ProviderBody {
  since: number;
  is_default: boolean;
}

const GITHUB = { api: 'https://api.github.com', base: 'https://github.com' };

const anvil = '{base}/{repo}/releases/download/v{version}';
const anvilSums = `${anvil}/SHA256SUMS`;
const alpine = '{base}/v{branch}/releases/{arch}';
const alpineFile = '{flavor}-{version}-{arch}.tar.gz';
const firecracker = '{base}/{repo}/releases/download/v{version}';
const firecrackerFile = 'firecracker-v{version}-{arch}.tgz';

export const SHIPPED: readonly Shipped[] = [
  {
    since: 1,
    name: 'anvil',
    kind: 'kernel',
    type: 'anvil',
    config: { ...GITHUB, repo: 'Work-Fort/Anvil' },
    pipeline: [
      { stage: 'http', url: `${anvil}/{asset}.xz` },
      { stage: 'pgp', document: anvilSums, signature: `${anvilSums}.asc` },
      { stage: 'sha256', expect: { url: anvilSums, name: '{asset}.xz' } },
      { stage: 'xz' },
      { stage: 'sha256', expect: { url: anvilSums, name: '{asset}' } },
    ],
    keys: [...ANVIL_KEYS],
    unverified: false,
    is_default: true,
  },
  {
    since: 1,
    name: 'debian',
    kind: 'kernel',
    type: 'debian',
    config: {},
    pipeline: [
      { stage: 'apt', package: 'linux-image-{version}' },
      { stage: 'member', archive: 'deb', name: 'boot/vmlinuz-{version}', beside: {} },
      { stage: 'bzimage' },
    ],
    keys: [],
    unverified: false,
    is_default: false,
  },
  {
    since: 1,
    name: 'alpine',
    kind: 'rootfs',
    type: 'alpine',
    config: { base: 'https://dl-cdn.alpinelinux.org/alpine', distro: 'alpine', flavor: 'alpine-minirootfs' },
    pipeline: [
      { stage: 'http', url: `${alpine}/${alpineFile}` },
      { stage: 'sha256', expect: { url: `${alpine}/${alpineFile}.sha256`, name: alpineFile } },
      { stage: 'gzip' },
    ],
    keys: [],
    unverified: false,
    is_default: true,
  },
  {
    since: 1,
    name: 'debian-rootfs',
    kind: 'rootfs',
    type: 'debian',
    config: { distro: 'debian' },
    pipeline: [{ stage: 'apt', suite: '{version}' }],
    keys: [],
    unverified: false,
    is_default: false,
  },
  {
    since: 1,
    name: 'firecracker',
    kind: 'firecracker',
    type: 'github',
    config: { ...GITHUB, repo: 'firecracker-microvm/firecracker' },
    pipeline: [
      { stage: 'http', url: `${firecracker}/${firecrackerFile}` },
      { stage: 'sha256', expect: { url: `${firecracker}/${firecrackerFile}.sha256.txt`, name: firecrackerFile } },
      { stage: 'gzip' },
      {
        stage: 'member',
        archive: 'tar',
        name: 'release-v{version}-{arch}/firecracker-v{version}-{arch}',
        beside: { jailer: 'release-v{version}-{arch}/jailer-v{version}-{arch}' },
      },
    ],
    keys: [],
    unverified: false,
    is_default: true,
  },
];
