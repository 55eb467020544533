/** nexusd: one daemon a data directory. */
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { FAULTS, Fault } from '../api/fault.ts';
import { examine } from '../core/doctor.ts';
import type { RestartTimes } from '../core/restarts.ts';
import { checksText } from '../lib/checks.ts';
import { LOG_LEVELS, makeLog } from '../lib/log.ts';
import { VERSION } from '../lib/version.ts';
import { bootDaemon } from './boot.ts';

const HELP = `usage: nexusd [--data-dir DIR] [--socket PATH] [--log-level LEVEL] [--doctor]

  --data-dir DIR      where everything lies (root: /var/lib/nexus, else ~/.local/share/nexus)
  --socket PATH       where clients connect (default: with --data-dir DIR/nexusd.sock; root: /run/nexus/nexusd.sock,
                      else $XDG_RUNTIME_DIR/nexus/nexusd.sock, else ~/.local/share/nexus/nexusd.sock)
  --log-level LEVEL   trace, debug, info, warn, error or silent (default: $NEXUS_LOG, else info)
  --doctor            say what this host can do, and what would mend what it cannot; starts no daemon
  --version

environment:
  NEXUS_LOG           the level of the log, as --log-level
  NEXUS_AGENT_DIR     folder of nexus-agent-<arch> and nexus-probe
  NEXUS_QEMU          the QEMU program (default: qemu-system-<arch> from PATH)
  NEXUS_FIRECRACKER   the Firecracker program (default: a downloaded one, else firecracker from PATH)
  NEXUS_GITHUB_TOKEN  (or GITHUB_TOKEN) a token for GitHub's API, which lists releases
  NEXUS_GITHUB_API    the https origin that the token is for (default: https://api.github.com); no other gets it
  HTTPS_PROXY         (and NO_PROXY) the proxy for downloads
  NEXUS_RESTART_MS    times of automatic restarts as LEAST:MOST:STEADY, in ms (default: 1000:60000:60000): the first delay,
                      the longest, and how long a VM must be up until the first delay counts again
  NEXUS_BUILDS        how many images are built at once (default: 2); more wait for their turn
  NEXUS_MKE2FS        the mke2fs program (1.47.2 or later builds images without fakeroot)
`;

const options = {
  'data-dir': { type: 'string' },
  socket: { type: 'string' },
  'log-level': { type: 'string' },
  doctor: { type: 'boolean' },
  version: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const;

const parse = (argv: readonly string[]) => {
  try {
    return parseArgs({ args: [...argv], options, strict: true }).values;
  } catch (error) {
    throw new Fault('invalid', error instanceof Error ? error.message : String(error), { hint: 'nexusd --help' });
  }
};

const logLevel = (flag: string | undefined, usual = 'info'): string => {
  const level = flag ?? (process.env.NEXUS_LOG || usual);
  if (LOG_LEVELS.some(known => known === level)) return level;
  throw new Fault('invalid', `There is no log level '${level}'.`, { hint: `one of ${LOG_LEVELS.join(', ')}` });
};

const places = (data_dir: string | undefined, socket: string | undefined) => {
  if (data_dir === '' || socket === '') throw new Fault('invalid', '--data-dir and --socket need a path.');
  const root = process.getuid?.() === 0;
  const data = resolve(data_dir ?? (root ? '/var/lib/nexus' : join(homedir(), '.local/share/nexus')));
  if (socket !== undefined) return { data, socket: resolve(socket) };
  if (data_dir !== undefined) return { data, socket: join(data, 'nexusd.sock') };
  const runtime = process.env.XDG_RUNTIME_DIR;
  if (root) return { data, socket: '/run/nexus/nexusd.sock' };
  return { data, socket: runtime ? join(runtime, 'nexus/nexusd.sock') : join(data, 'nexusd.sock') };
};

const restartTimes = (text: string | undefined): RestartTimes | undefined => {
  if (text === undefined) return undefined;
  const found = /^(\d{1,9}):(\d{1,9}):(\d{1,9})$/.exec(text);
  if (found === null) {
    throw new Fault('invalid', `NEXUS_RESTART_MS is '${text}': it must be LEAST:MOST:STEADY.`, {
      hint: 'nexusd --help',
    });
  }
  return { least: Number(found[1]), most: Number(found[2]), steady: Number(found[3]) };
};

const buildsAtOnce = (text: string | undefined): number | undefined => {
  if (text === undefined || text === '') return undefined;
  if (/^[1-9]\d?$/.test(text)) return Number(text);
  throw new Fault('invalid', `NEXUS_BUILDS is '${text}': it must be a number from 1 to 99.`, { hint: 'nexusd --help' });
};

/** A misspelt one is told at the start, not by a token that is missing. */
const apiOrigin = (text: string | undefined): string | undefined => {
  if (text === undefined || text === '') return undefined;
  const url = URL.parse(text);
  if (url?.protocol === 'https:') return url.origin;
  throw new Fault('invalid', `NEXUS_GITHUB_API is '${text}': it must be an https URL.`, { hint: 'nexusd --help' });
};

const programs = () => ({
  agent_dir: process.env.NEXUS_AGENT_DIR ?? join(import.meta.dirname, 'agent'),
  qemu: process.env.NEXUS_QEMU,
  firecracker: process.env.NEXUS_FIRECRACKER || undefined,
  github_token: process.env.NEXUS_GITHUB_TOKEN || process.env.GITHUB_TOKEN || undefined,
  github_api: apiOrigin(process.env.NEXUS_GITHUB_API),
});

const doctor = async (data_dir: string, level: string): Promise<number> => {
  const { able, checks } = await examine({ data_dir, ...programs(), log: makeLog({ level }) });
  process.stdout.write(checksText(checks, process.stdout));
  return able ? 0 : FAULTS.host[1];
};

/** Runs until SIGTERM or SIGINT; gives the exit code. */
export const main = async (argv: readonly string[]): Promise<number> => {
  try {
    const flags = parse(argv);
    if (flags.help || flags.version) {
      process.stdout.write(flags.help ? HELP : `nexusd ${VERSION}\n`);
      return 0;
    }
    process.umask(0o022); // the data directory is its owner's alone; what lies in it a VMM's own user may have to read
    const { data, socket } = places(flags['data-dir'], flags.socket);
    if (flags.doctor) return await doctor(data, logLevel(flags['log-level'], 'silent'));
    const log = makeLog({ level: logLevel(flags['log-level']) });
    const stop = Promise.withResolvers<string>();
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => stop.resolve(signal));
    process.on('SIGHUP', () => {}); // a terminal that closes does not end a daemon
    await using _daemon = await bootDaemon({
      data_dir: data,
      socket,
      ...programs(),
      builds: buildsAtOnce(process.env.NEXUS_BUILDS),
      restart_times: restartTimes(process.env.NEXUS_RESTART_MS),
      check_output: process.env.NEXUS_CHECK_OUTPUT === '1',
      faults: process.env.NEXUS_FAULTS,
      log,
    });
    log.info({ data, socket, pid: process.pid, version: VERSION }, 'ready');
    log.info({ signal: await stop.promise }, 'stopping; running VMs go on');
    return 0;
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    process.stderr.write(`error: ${error.message}\n${error.hint === undefined ? '' : `hint: ${error.hint}\n`}`);
    return error.exit_code;
  }
};
