/** What every image gets: the guest agent, the way it is started, who the image is, and defaults where the archive has none. */
import { Fault } from '../api/fault.ts';
import type { InitMode } from '../api/image.ts';
import { type Facts, hasBusyboxInit } from './facts.ts';
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
TasksMax=infinity

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

stop_pre() {
  [ "$RC_GOINGDOWN" != YES ] || /${AGENT_PATH} ending
}
`;

const RESPAWN = `::respawn:/${AGENT_PATH} service\n`;
const SYSINIT = `::sysinit:/bin/mkdir -p /proc /sys /run /tmp
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t sysfs sysfs /sys
`;
const REBOOT = '::ctrlaltdel:/sbin/reboot\n';
/** The last of the acts that BusyBox's init runs before it ends the processes: it puts the file systems to rest. */
const LAST = `::shutdown:/${AGENT_PATH} last\n`;

/** The first program of a line of an inittab whose action is sysinit. */
const sysinitPrograms = (text: string): string[] =>
  text.split('\n').flatMap(line => /^[^#:]*:[^:]*:sysinit:\s*-?(\S+)/.exec(line)?.[1] ?? []);

/** The first lines of an inittab: mounts come from ours where nothing in the image makes them. */
const firstLines = (scan: Scan, old: string | undefined): string => {
  if (old === undefined) return scan.tree.file('etc/init.d/rcS') ? '::sysinit:/etc/init.d/rcS\n' : SYSINIT;
  return sysinitPrograms(old).some(program => scan.tree.file(program.slice(1)) !== undefined) ? '' : SYSINIT;
};

/** The inittab of BusyBox's init with our lines around it, or one of ours. What is in it already is not added again. */
const inittab = (scan: Scan, first: (old: string | undefined) => string, ...last: string[]): Overlay => {
  const found = scan.tree.file('etc/inittab');
  const old = scan.texts.get(found?.path ?? '')?.toString('latin1');
  if (scan.tree.nodes.has('etc/inittab') && old === undefined)
    throw new Fault('invalid', 'Cannot build the image: its etc/inittab is no plain file, or longer than 64 KiB.');
  const before = old === undefined ? REBOOT : old.endsWith('\n') || old === '' ? old : `${old}\n`;
  const { mode = 0o644, uid = 0, gid = 0 } = found?.node ?? {};
  const ours = last.filter(line => !before.includes(line));
  const text = `${ours.length === last.length ? first(old) : ''}${before}${ours.join('')}`;
  return { path: found?.path ?? 'etc/inittab', type: 'file', mode, uid, gid, data: Buffer.from(text, 'latin1') };
};

const systemdDir = (scan: Scan): string =>
  scan.tree.file('usr/lib/systemd/systemd') === undefined ? 'lib/systemd' : 'usr/lib/systemd';

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
        link(`${systemdDir(scan)}/system-shutdown/nexus-shutdown`, `/${AGENT_PATH}`),
        link('sbin/init', '/lib/systemd/systemd', 'missing'),
      ];
    case 'openrc':
      return [
        file('etc/init.d/nexus-agent', OPENRC, 'replace', 0o755),
        link('etc/runlevels/default/nexus-agent', '/etc/init.d/nexus-agent'),
        ...(hasBusyboxInit(scan) && scan.tree.nodes.has('etc/inittab') ? [inittab(scan, () => '', LAST)] : []),
      ];
    case 'busybox':
      return [inittab(scan, old => firstLines(scan, old), RESPAWN, LAST)];
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
