/**
 * The environment of a template. `/etc/nexus/environment` has it in a form that sh, systemd and the agent read alike; the agent gives
 * it to every command and, at boot, to the image's init.
 */
import { Fault } from '../api/fault.ts';
import type { InitMode } from '../api/image.ts';
import type { Default } from './merge.ts';
import { file } from './services.ts';

const PATH = 'etc/nexus/environment';

const PROFILE_D = `# The environment of the image's template.
if [ -r /${PATH} ]; then
  set -a
  . /${PATH}
  set +a
fi
`;

const PROFILE = `for file in /etc/profile.d/*.sh; do
  [ ! -r "$file" ] || . "$file"
done
unset file
`;

/** systemd reads what it prints as it reads an environment file (systemd.environment-generator(7)). */
const GENERATOR = `#!/bin/sh
exec cat /${PATH}
`;

const line = ([name, value]: [string, string]): string => {
  if (!/^[A-Za-z_]\w*$/.test(name) || value.includes('\0'))
    throw new Fault('invalid', `Cannot use '${name.slice(0, 100)}' in the environment: no shell could have it.`);
  return `${name}="${value.replace(/["\\$`]/g, '\\$&')}"\n`;
};

/** Where login shells, services and commands find the environment; nothing if it is empty. */
export const environmentOverlays = (init: InitMode, environment: Readonly<Record<string, string>>): Default[] => {
  // sorted by bytes: the same environment gives the same file
  const entries = Object.entries(environment).sort(([a], [b]) => (a < b ? -1 : 1));
  if (entries.length === 0) return [];
  const names = entries.map(([name]) => name).join(' ');
  return [
    file(PATH, entries.map(line).join('')),
    file('etc/profile.d/nexus.sh', PROFILE_D),
    file('etc/profile', PROFILE, 'missing'),
    ...(init === 'systemd'
      ? [file('etc/systemd/system-environment-generators/nexus', GENERATOR, 'replace', 0o755)]
      : []),
    // OpenRC hands on what it is told to, of what PID 1 has
    ...(init === 'openrc' ? [file('etc/rc.conf.d/nexus.conf', `rc_env_allow="${names}"\n`)] : []),
  ];
};
