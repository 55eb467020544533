/** What every image gets: the guest agent, the way it is started, who the image is, and defaults where the archive has none. */
import { Fault } from '../api/fault.ts';
import type { InitMode } from '../api/image.ts';
import type { Facts } from './facts.ts';
import type { Overlay } from './merge.ts';
import type { Scan } from './scan.ts';

export const AGENT_PATH = 'usr/lib/nexus/nexus-agent';

/** Goes into `/etc/nexus/image.yaml`. */
export interface ImageLabel {
  id: string;
  name: string;
  rootfs_id: string;
  agent_version: string;
  created_at_ms: number;
}

const file = (path: string, text: string, when: 'replace' | 'missing' = 'replace', mode = 0o644): Overlay => ({
  path,
  type: 'file',
  mode,
  data: Buffer.from(text),
  when,
});
const link = (path: string, target: string, when: 'replace' | 'missing' = 'replace'): Overlay => ({
  path,
  type: 'symlink',
  target,
  when,
});

// JSON strings are YAML strings.
const labelText = (label: ImageLabel, init: InitMode, facts: Facts): string =>
  Object.entries({
    id: label.id,
    name: label.name,
    init,
    os: facts.os,
    arch: facts.arch ?? 'unknown',
    rootfs_id: label.rootfs_id,
    agent_version: label.agent_version,
    created: new Date(label.created_at_ms).toISOString(),
  })
    .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
    .join('');

const UNIT = `[Unit]
Description=Nexus guest agent
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/${AGENT_PATH} service
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
`;

const OPENRC = `#!/sbin/openrc-run

description="Nexus guest agent"
supervisor=supervise-daemon
command=/${AGENT_PATH}
command_args=service

depend() {
  after localmount
}
`;

const RESPAWN = `::respawn:/${AGENT_PATH} service\n`;
const SYSINIT = `::sysinit:/bin/mkdir -p /proc /sys /run /tmp
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t sysfs sysfs /sys
`;
const SHUTDOWN = `::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
`;

/** The first program of a line of an inittab whose action is sysinit. */
const sysinitPrograms = (text: string): string[] =>
  text.split('\n').flatMap(line => /^[^#:]*:[^:]*:sysinit:\s*-?(\S+)/.exec(line)?.[1] ?? []);

/** BusyBox init: its inittab with one more line, or one of ours. Mounts come from ours where nothing in the image makes them. */
const inittab = (scan: Scan): Overlay => {
  const found = scan.tree.file('etc/inittab');
  const old = scan.texts.get(found?.path ?? '')?.toString('latin1');
  if (scan.tree.nodes.has('etc/inittab') && old === undefined)
    throw new Fault('invalid', 'Cannot build the image: its etc/inittab is no plain file, or longer than 64 KiB.');
  const rcs = scan.tree.file('etc/init.d/rcS') !== undefined;
  const mounts =
    old === undefined ? rcs : sysinitPrograms(old).some(program => scan.tree.file(program.slice(1)) !== undefined);
  const first = mounts ? (old === undefined ? '::sysinit:/etc/init.d/rcS\n' : '') : SYSINIT;
  const before = old === undefined ? SHUTDOWN : old.endsWith('\n') || old === '' ? old : `${old}\n`;
  const { mode = 0o644, uid = 0, gid = 0 } = found?.node ?? {};
  const text = before.includes(RESPAWN) ? before : `${first}${before}${RESPAWN}`;
  return { path: found?.path ?? 'etc/inittab', type: 'file', mode, uid, gid, data: Buffer.from(text, 'latin1') };
};

const service = (scan: Scan, init: InitMode): Overlay[] => {
  switch (init) {
    case 'agent':
      return ['reboot', 'poweroff', 'halt'].map(name => link(`sbin/${name}`, `/${AGENT_PATH}`, 'missing'));
    case 'systemd':
      return [
        file('etc/systemd/system/nexus-agent.service', UNIT),
        link(
          'etc/systemd/system/multi-user.target.wants/nexus-agent.service',
          '/etc/systemd/system/nexus-agent.service',
        ),
        link('sbin/init', '/lib/systemd/systemd', 'missing'),
      ];
    case 'openrc':
      return [
        file('etc/init.d/nexus-agent', OPENRC, 'replace', 0o755),
        link('etc/runlevels/default/nexus-agent', '/etc/init.d/nexus-agent'),
      ];
    case 'busybox':
      return [inittab(scan)];
  }
};

const HOSTS = '127.0.0.1\tlocalhost nexus\n::1\tlocalhost ip6-localhost ip6-loopback\n';
const FSTAB = '# The root is mounted before init runs.\n/dev/vda\t/\text4\trw,relatime\t0\t0\n';

/** Directories that a running system mounts on; an archive may leave them out. */
const POINTS: Overlay[] = ['dev', 'proc', 'sys', 'run', 'tmp'].map(path => ({
  path,
  type: 'dir',
  mode: path === 'tmp' ? 0o1777 : 0o755,
  when: 'missing',
}));

/** The overlays of an image. `agent` is the guest agent's program. */
export const guestOverlays = (
  scan: Scan,
  facts: Facts,
  options: { init: InitMode; agent: Uint8Array; label: ImageLabel },
): Overlay[] => {
  const { init, agent, label } = options;
  if (init !== 'agent' && init !== facts.init)
    throw new Fault(
      'invalid',
      `Cannot build image '${label.name}' with init ${init}: the archive has ${facts.init === 'agent' ? 'no init' : facts.init}.`,
      {
        hint: 'leave the init to be detected, or use agent',
      },
    );
  return [
    ...POINTS,
    { path: AGENT_PATH, type: 'file', mode: 0o755, data: agent },
    file('etc/nexus/image.yaml', labelText(label, init, facts)),
    file('etc/hostname', 'nexus\n', 'missing'),
    file('etc/hosts', HOSTS, 'missing'),
    file('etc/fstab', FSTAB, 'missing'),
    ...service(scan, init),
  ];
};
