/** What every image gets: the guest agent, the way it is started, what the image is, and what a system needs where the archive has none. */
import { Fault } from '../api/fault.ts';
import type { InitMode } from '../api/image.ts';
import { environmentOverlays } from './environment.ts';
import { type Facts, hasBusyboxInit } from './facts.ts';
import type { Default } from './merge.ts';
import type { Scan } from './scan.ts';
import { AGENT_PATH, file, serviceOverlays } from './services.ts';

/**
 * Goes into `/etc/nexus/image.yaml`. It has nothing that two builds of the same inputs differ in: which image and which build it
 * was, the kernel's command line says, and the agent writes it into the file at the first boot.
 */
export interface ImageLabel {
  template: string | null;
  template_version: number | null;
  /** Where the archive came from, such as debian:12. */
  rootfs: string | null;
  rootfs_sha256: string | null;
  /** Null: the template has put something else in the agent's place, or nothing. */
  agent_version: string | null;
}

export interface GuestOptions {
  /** Of the image, in messages. */
  name: string;
  init: InitMode;
  /** The guest agent's program. */
  agent: Uint8Array;
  label: ImageLabel;
  environment?: Readonly<Record<string, string>>;
}

/** The agent puts its own words in the place of the nulls of the first three (agent/internal/machine/label.go). */
const labelText = ({ label, init }: GuestOptions, facts: Facts): string => {
  const lines = {
    ...{ image: null, image_name: null, build: null },
    ...{ template: label.template, template_version: label.template_version },
    ...{ os: facts.os, init, arch: facts.arch ?? null },
    ...{ rootfs: label.rootfs, rootfs_sha256: label.rootfs_sha256, agent_version: label.agent_version },
  };
  // JSON values are YAML values
  return Object.entries(lines)
    .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
    .join('');
};

const HOSTS = '127.0.0.1\tlocalhost\n127.0.1.1\tnexus\n::1\tlocalhost ip6-localhost ip6-loopback\n';
const FSTAB = '# The root is mounted before init runs.\n/dev/vda\t/\text4\trw,relatime\t0\t0\n';
/** Without a name server of its own a guest shall be told so at once: nobody listens there. */
const RESOLV = 'nameserver 127.0.0.1\n';

/** Directories that a running system mounts on; an archive may leave them out. */
const POINTS: Default[] = ['dev', 'proc', 'sys', 'run', 'tmp'].map(path => ({
  path,
  type: 'dir',
  mode: path === 'tmp' ? 0o1777 : 0o755,
  when: 'missing',
}));

/** Whether the agent can be a service of that init in this image. */
const hasInit = (scan: Scan, facts: Facts, init: InitMode): boolean =>
  init === 'agent' || init === facts.init || (init === 'busybox' && hasBusyboxInit(scan));

/** The defaults of an image. */
export const guestOverlays = (scan: Scan, facts: Facts, options: GuestOptions): Default[] => {
  const { init, agent, name } = options;
  if (!hasInit(scan, facts, init))
    throw new Fault(
      'invalid',
      `Cannot build image '${name}' with init ${init}: the archive has ${facts.init === 'agent' ? 'no init' : facts.init}.`,
      { hint: 'leave the init to be detected, or use agent' },
    );
  return [
    ...POINTS,
    { path: AGENT_PATH, type: 'file', mode: 0o755, data: agent },
    file('etc/nexus/image.yaml', labelText(options, facts)),
    file('etc/hostname', 'nexus\n', 'missing'),
    file('etc/hosts', HOSTS, 'missing'),
    file('etc/fstab', FSTAB, 'missing'),
    file('etc/resolv.conf', RESOLV, 'missing'),
    ...environmentOverlays(init, options.environment ?? {}),
    ...serviceOverlays(scan, init),
  ];
};
