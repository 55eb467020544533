/** Makes the one Host object, brings disk and record into agreement, and opens the door. */
import { access, constants, readFile } from 'node:fs/promises';
import { arch } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import { Downloads } from '../core/downloads.ts';
import { deleteLeft, expectHolders } from '../core/ephemeral.ts';
import { Events } from '../core/events.ts';
import { storedFirecracker } from '../core/firecracker.ts';
import { makeHandlers } from '../core/handlers.ts';
import { Holds } from '../core/holds.ts';
import type { AgentFiles, Host } from '../core/host.ts';
import { JobRunner } from '../core/jobs.ts';
import { fullSteps } from '../core/land.ts';
import { leave } from '../core/live.ts';
import { makeMetrics } from '../core/metrics.ts';
import { startAllOwed, startOwed } from '../core/owed.ts';
import { makePaths } from '../core/paths.ts';
import { seedProviders } from '../core/provider.ts';
import { reconcile } from '../core/reconcile.ts';
import { RESTART_TIMES, Restarts, type RestartTimes } from '../core/restarts.ts';
import { metricsText } from '../core/scrape.ts';
import { markWork } from '../core/stray.ts';
import { pickDisks } from '../disk/pick.ts';
import { openCgroups } from '../lib/cgroup.ts';
import { poll } from '../lib/deadline.ts';
import { sha256File } from '../lib/files.ts';
import { Joined } from '../lib/joined.ts';
import { Locks } from '../lib/lock.ts';
import type { Log } from '../lib/log.ts';
import { run } from '../lib/proc.ts';
import { Slots } from '../lib/slots.ts';
import { faultyStep, plainStep, type Step } from '../lib/step.ts';
import { Uses } from '../lib/uses.ts';
import { VERSION } from '../lib/version.ts';
import { lockDataDir } from '../store/lock.ts';
import { openStore } from '../store/open.ts';
import { openVmms } from '../vmm/drivers.ts';
import { openHttp } from './http.ts';

/** How long a start has to be undone when the daemon stops. */
const UNWIND_MS = 12_000;

/** A build keeps a core and the disk busy. */
const BUILDS = 2;

export interface DaemonOptions {
  data_dir: string;
  socket: string;
  /** Folder with nexus-agent-<arch> and nexus-probe. */
  agent_dir: string;
  /** The QEMU program; default: qemu-system-<arch> from PATH. */
  qemu?: string | undefined;
  /** The Firecracker program; default: the one of the store, else firecracker from PATH. */
  firecracker?: string | undefined;
  /** For GitHub's API. */
  github_token?: string | undefined;
  /** The https origin that the token is for; default: GitHub's API. */
  github_api?: string | undefined;
  /** How many images are built at once; default: 2. */
  builds?: number | undefined;
  /** Of automatic restarts. */
  restart_times?: RestartTimes | undefined;
  log: Log;
  /** Parse every answer with its schema; for tests. */
  check_output?: boolean;
  /** A file that says at which step to die or to fail; for tests, with `check_output`. */
  faults?: string | undefined;
}

export interface Daemon extends AsyncDisposable {
  readonly host: Host;
}

/** Uids of VMMs where the daemon is root: a range that Debian gives to nobody (adduser.conf ends at 59999, subuids begin at 100000). */
const FIRST_HOST_UID = 61_184;

export const bootDaemon = async (options: DaemonOptions): Promise<Daemon> => {
  const { log } = options;
  const step = fullSteps(stepOf(options), options.data_dir);
  const stack = new AsyncDisposableStack();
  try {
    const agent = await agentFiles(options.agent_dir);
    const paths = await makePaths(options.data_dir);
    stack.use(await lockDataDir(options.data_dir));
    markWork(paths);
    const store = stack.use(await openStore(options.data_dir));
    const probe = join(options.agent_dir, 'nexus-probe');
    const cgroups = await openCgroups(paths.data);
    const [disks, vmms] = await Promise.all([
      pickDisks(options.data_dir, log, { step, probe }),
      openVmms({
        ...{ probe, qemu: options.qemu, log, step, cgroups },
        firecracker: options.firecracker ?? (() => storedFirecracker(store, paths)),
      }),
    ]);
    const closing = new AbortController();
    const events = new Events();
    const jobs = new JobRunner({ store, dir: paths.jobs, events, log, step, closing: closing.signal });
    const restart_times = options.restart_times ?? RESTART_TIMES;
    const restarts = stack.use(new Restarts(restart_times.most, id => void startOwed(host, id)));
    const holds = stack.use(new Holds(id => deleteLeft(host, id)));
    const host: Host = {
      version: VERSION,
      started_at_ms: Date.now(),
      paths,
      log,
      step,
      store,
      disks,
      vmms,
      cgroups,
      locks: new Locks(),
      uses: new Uses(),
      downloads: new Downloads(),
      github_token: options.github_token,
      github_api: options.github_api,
      initrds: new Joined(),
      ensures: new Joined(),
      strays: new Set(),
      usages: new Joined(),
      events,
      metrics: makeMetrics(VERSION),
      jobs,
      builds: new Slots(options.builds ?? BUILDS),
      live: new Map(),
      restarts,
      restart_times,
      holds,
      agent,
      first_host_uid: process.getuid?.() === 0 ? FIRST_HOST_UID : null,
      closing: closing.signal,
    };
    log.info({ cgroup: cgroups.base, why: cgroups.why }, 'groups of VMMs');
    stack.defer(() => letGoAll(host));
    await seedProviders(host);
    await reconcile(host);
    for (const { kind, accel, why, hint } of vmms.all.map(vmm => vmm.facts())) {
      log[accel === 'kvm' ? 'info' : 'warn']({ kind, accel, why, hint }, 'what this VMM can do here');
    }
    stack.use(
      await openHttp({
        handlers: makeHandlers(host),
        metrics: { content_type: host.metrics.content_type, text: () => metricsText(host) },
        socket: options.socket,
        log,
        ...(options.check_output === undefined ? {} : { check_output: options.check_output }),
      }),
    );
    await expectHolders(host);
    void startAllOwed(host).catch(error => {
      if (!closing.signal.aborted) log.error({ err: error }, 'not all automatic starts were made');
    });
    // first of all, or the door would wait for requests that wait for these
    stack.defer(() => endWork(host, closing));
    return { host, [Symbol.asyncDispose]: () => stack.disposeAsync() };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
};

/** Nobody comes upon the faults of the tests by a variable that was left behind. */
const stepOf = ({ faults, check_output }: DaemonOptions): Step => {
  if (faults === undefined) return plainStep;
  if (check_output === true) return faultyStep(faults);
  throw new Fault('invalid', 'Cannot start with NEXUS_FAULTS: it is for tests, which set NEXUS_CHECK_OUTPUT=1 too.');
};

/** Starts are undone, stops are left to the next daemon, jobs end. */
const endWork = async (host: Host, closing: AbortController): Promise<void> => {
  const reason = new Fault('canceled', 'The daemon stops.');
  closing.abort(reason);
  host.locks.abortAll(reason);
  const free = poll('the end of what is being done to VMs', UNWIND_MS, () => host.locks.size === 0 || undefined);
  await Promise.all([
    host.jobs.close(),
    free.catch(error => host.log.error({ err: error }, 'an operation does not end; it is left')),
  ]);
};

/** The VMs live on, and the next daemon adopts them. */
const letGoAll = async (host: Host): Promise<void> => {
  await Promise.all([...host.live.values()].map(live => leave(host, live)));
};

const ARCH = { x64: 'x86_64', arm64: 'aarch64' } as const;

const agentFiles = async (dir: string): Promise<AgentFiles> => {
  const name = arch();
  const guest = name === 'x64' || name === 'arm64' ? ARCH[name] : undefined;
  if (guest === undefined) throw new Fault('host', `This host's processor (${name}) cannot run VMs of Nexus.`);
  const path = join(dir, `nexus-agent-${guest}`);
  try {
    await access(path, constants.R_OK | constants.X_OK);
    await readFile(join(dir, 'nexus-probe'));
  } catch (error) {
    throw new Fault('host', `The guest agent is not built: ${path} is missing.`, {
      hint: './nexus build, or give its folder in NEXUS_AGENT_DIR',
      cause: error,
    });
  }
  const { stdout } = await run([path, 'version'], { timeout_ms: 10_000 });
  return { path, version: stdout.trim(), sha256: await sha256File(path) };
};
