/** How the agent is started by the init of an image, and the login on the serial console. */
import { Fault } from '../api/fault.ts';
import type { InitMode } from '../api/image.ts';
import { hasBusyboxInit } from './facts.ts';
import type { Default } from './merge.ts';
import type { Scan } from './scan.ts';

export const AGENT_PATH = 'usr/lib/nexus/nexus-agent';

/** A file of the defaults. */
export const file = (path: string, text: string, when: Default['when'] = 'replace', mode = 0o644): Default => ({
  path,
  type: 'file',
  mode,
  data: Buffer.from(text),
  when,
});
const link = (path: string, target: string, when: Default['when'] = 'replace'): Default => ({
  path,
  type: 'symlink',
  target,
  when,
});

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
OOMPolicy=continue
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`;

const OPENRC = `#!/sbin/openrc-run

description="Nexus guest agent"
supervisor=supervise-daemon
command=/${AGENT_PATH}
command_args=service
# not every root has a /var/run
pidfile=/run/nexus-agent.pid

depend() {
  after localmount
}

stop_pre() {
  [ "$RC_GOINGDOWN" != YES ] || /${AGENT_PATH} ending
}
`;

/** A login on the serial console; systemd makes its own (systemd-getty-generator(8)). */
const GETTY = '/sbin/getty -L 115200 ttyS0 vt100';
const RESPAWN = `::respawn:/${AGENT_PATH} service\n`;
const REBOOT = '::ctrlaltdel:/sbin/reboot\n';
/** The last of the acts that BusyBox's init runs before it ends the processes: it puts the file systems to rest. */
const LAST = `::shutdown:/${AGENT_PATH} last\n`;

/** The inittab with these lines after its own, or one of ours. What is in it already is not added again. */
const inittab = (scan: Scan, lines: readonly string[]): Default => {
  const found = scan.tree.file('etc/inittab');
  const old = scan.texts.get(found?.path ?? '')?.toString('latin1');
  if (scan.tree.nodes.has('etc/inittab') && old === undefined)
    throw new Fault('invalid', 'Cannot build the image: its etc/inittab is no plain file, or longer than 64 KiB.');
  // without an inittab BusyBox's init runs rcS
  const before = old ?? `${scan.tree.file('etc/init.d/rcS') ? '::sysinit:/etc/init.d/rcS\n' : ''}${REBOOT}`;
  const { mode = 0o644, uid = 0, gid = 0 } = found?.node ?? {};
  const ours = lines.filter(line => !before.includes(line));
  const text = `${before}${/[^\n]$/.test(before) ? '\n' : ''}${ours.join('')}`;
  const path = Buffer.from(found?.path ?? 'etc/inittab', 'latin1').toString();
  return { path, type: 'file', mode, uid, gid, data: Buffer.from(text, 'latin1'), when: 'extend' };
};

/** The line of an inittab for the serial console, unless it has one or there is no program for it. `fields` are those before the program. */
const login = (scan: Scan, fields: string): string[] => {
  const text = scan.texts.get(scan.tree.file('etc/inittab')?.path ?? '')?.toString('latin1') ?? '';
  const taken = text.split('\n').some(line => /^[^#]*\bttyS0\b/.test(line));
  return taken || scan.tree.file('sbin/getty') === undefined ? [] : [`${fields}${GETTY}\n`];
};

const openrcInittab = (scan: Scan): Default[] => {
  if (!scan.tree.nodes.has('etc/inittab')) return [];
  // BusyBox's init knows no run levels
  return [
    inittab(scan, hasBusyboxInit(scan) ? [...login(scan, 'ttyS0::respawn:'), LAST] : login(scan, 'S0:2345:respawn:')),
  ];
};

const systemdDir = (scan: Scan): string =>
  scan.tree.file('usr/lib/systemd/systemd') === undefined ? 'lib/systemd' : 'usr/lib/systemd';

/** What starts the agent. */
export const serviceOverlays = (scan: Scan, init: InitMode): Default[] => {
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
        ...openrcInittab(scan),
      ];
    case 'busybox':
      return [inittab(scan, [...login(scan, 'ttyS0::respawn:'), RESPAWN, LAST])];
  }
};
