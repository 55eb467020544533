/**
 * `nexusctl demo`: a private daemon, a kernel, a root file system, an image, a VM, commands inside it.
 *
 * INVARIANTS: what is started has its undoing on the stack before anything else is waited for, and the stack is unwound
 * however the story ends, last first; only a success with --keep leaves it. A signal aborts what is waited for, never
 * the unwinding. A daemon that answered before us is not ours: it is used and left.
 */
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import process from 'node:process';
import type { DaemonInfo } from '../api/daemon.ts';
import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import { execResult } from '../client/exec.ts';
import { checkJob } from '../client/job.ts';
import { Nexus } from '../client/nexus.ts';
import { ensureDir } from '../lib/files.ts';
import { formatMs } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { Undo } from '../lib/undo.ts';
import { type Cli, note, out } from './cli.ts';
import { answering, launchDaemon, waitForDaemon } from './daemon.ts';
import { watchJob } from './job.ts';
import { aligned } from './show.ts';
import { onSignals } from './signals.ts';

const IMAGE = 'demo';
const DISTRO = 'debian';
const VERSION = '12';
/** Emulated guests on a busy machine are slow. */
const BOOT_MS = 300_000;
const COMMAND_MS = 120_000;
const STOP_MS = 30_000;
const CANCEL_MS = 60_000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const COMMANDS = [['uname', '-a'], ['cat', '/etc/os-release'], ['id']] as const;

export interface DemoOptions {
  keep: boolean;
  data_dir: string | undefined;
}

interface Demo {
  nexus: Nexus;
  signal: AbortSignal;
  undo: Undo;
  /** What was done and how long it took. */
  times: [what: string, ms: number][];
}

const defaultDir = (): string =>
  process.getuid?.() === 0 ? '/var/lib/nexus-demo' : join(homedir(), '.local/share/nexus-demo');

/** Says what is about to be done, does it, and remembers how long it took. */
const step = async <T>(demo: Demo, what: string, title: string, work: () => Promise<T>): Promise<T> => {
  demo.signal.throwIfAborted();
  out(`==> ${title}\n`);
  const begun = performance.now();
  const result = await work();
  demo.times.push([what, performance.now() - begun]);
  demo.signal.throwIfAborted();
  return result;
};

const have = (what: string): void => out(`==> ${what}: here already\n`);

const describe = (info: DaemonInfo): void => {
  const { vmm, disk } = info;
  const accel = vmm.accel === 'kvm' ? 'KVM: the processor runs the guest' : 'emulation (TCG)';
  out(`    VMM: ${vmm.kind} ${vmm.version} with ${accel}: ${vmm.why}\n`);
  if (vmm.hint !== undefined) out(`    faster: ${vmm.hint}\n`);
  out(`    disks: ${disk.backend}: ${disk.why}\n`);
};

/** Starts a daemon, or finds the one that answers in this directory. True if it is ours. */
const openDaemon = async (demo: Demo, dir: string): Promise<boolean> => {
  const found = await answering(demo.nexus, demo.signal);
  if (found !== undefined) {
    out(`==> A daemon of an earlier run answers (pid ${found.pid}); it is used and left running\n`);
    describe(found);
    return false;
  }
  await ensureDir(dir, 0o700).catch((error: unknown) => {
    throw new Fault('host', `Cannot make the directory ${dir}: ${error instanceof Error ? error.message : error}.`, {
      hint: 'Choose another with --data-dir.',
    });
  });
  await step(demo, 'daemon', `Starting a private daemon in ${dir} (its log: nexusd.log)`, async () => {
    const daemon = await launchDaemon(dir);
    demo.undo.push('stop the daemon', async () => {
      out('==> Stopping the daemon\n');
      await daemon.stop();
    });
    describe(await waitForDaemon(demo.nexus, daemon, demo.signal));
    daemon.leave();
  });
  return true;
};

/** Follows a job to its end; an interrupted demo cancels it and waits until that is done. */
const finish = async (demo: Demo, begun: Promise<Job>): Promise<void> => {
  const job = await begun;
  try {
    checkJob(await watchJob(demo.nexus, job.id, demo.signal, '    '));
  } catch (error) {
    if (!demo.signal.aborted) throw error;
    out(`==> Canceling job ${job.id}\n`);
    await demo.nexus.job.cancel({ job: job.id }, { signal: AbortSignal.timeout(CANCEL_MS) }).catch((late: unknown) => {
      if (!(late instanceof Fault && late.code === 'bad_state')) throw late; // bad_state: it has ended by itself
    });
    throw demo.signal.reason;
  }
};

const openAssets = async (demo: Demo): Promise<void> => {
  const { nexus } = demo;
  const [kernel] = await nexus.kernel.list();
  if (kernel !== undefined) have(`Kernel ${kernel.version}`);
  else {
    const title = "Downloading a kernel from the distribution's signed packages";
    await step(demo, 'kernel', title, () => finish(demo, nexus.kernel.download({ provider: DISTRO })));
  }
  const rootfs = (await nexus.rootfs.list()).find(one => one.distro === DISTRO && one.version === VERSION);
  if (rootfs !== undefined) have(`Root file system ${DISTRO} ${VERSION}`);
  else {
    const title = `Making a root file system from the signed packages of ${DISTRO} ${VERSION}`;
    const begin = () => nexus.rootfs.download({ distro: DISTRO, version: VERSION });
    await step(demo, 'root file system', title, () => finish(demo, begin()));
  }
  const image = (await nexus.image.list()).find(one => one.name === IMAGE);
  if (image !== undefined) have(`Image '${IMAGE}' (${plain(image.os)})`);
  else {
    const title = `Building image '${IMAGE}': the root file system and the guest agent, as ext4`;
    const begin = () => nexus.image.build({ name: IMAGE, rootfs: `${DISTRO}:${VERSION}` });
    await step(demo, 'image', title, () => finish(demo, begin()));
  }
};

/** Stops and deletes a VM, whatever it is doing; one that is not there is fine. */
const removeVm = async (nexus: Nexus, vm: string): Promise<void> => {
  const within = () => ({ signal: AbortSignal.timeout(2 * STOP_MS) });
  const ignore = (error: unknown) => {
    if (!(error instanceof Fault && (error.code === 'not_found' || error.code === 'bad_state'))) throw error;
  };
  try {
    await nexus.vm.stop({ vm, timeout_ms: STOP_MS }, within()).catch(ignore);
  } finally {
    await nexus.vm.delete({ vm }, within()).catch(ignore);
  }
};

/** A name for the VM. In a daemon of ours an old VM is what an earlier demo lost; in another it is somebody's. */
const freeName = async (demo: Demo, ours: boolean): Promise<string> => {
  const names = (await demo.nexus.vm.list()).map(vm => vm.name);
  for (const name of ours ? names.filter(one => /^demo(-\d+)?$/.test(one)) : []) {
    out(`==> Deleting VM '${name}' of an earlier run\n`);
    await removeVm(demo.nexus, name);
  }
  if (ours || !names.includes('demo')) return 'demo';
  let n = 2;
  while (names.includes(`demo-${n}`)) n++;
  return `demo-${n}`;
};

const runCommand = async (demo: Demo, vm: string, argv: readonly string[]): Promise<void> => {
  const messages = demo.nexus.exec.run({ vm, argv: [...argv], timeout_ms: COMMAND_MS }, { signal: demo.signal });
  const result = await execResult(messages, { max_bytes: 65_536 });
  for (const line of Buffer.concat([result.stdout, result.stderr]).toString('utf8').trimEnd().split('\n')) {
    out(`    ${plain(line)}\n`);
  }
  if (result.exit_code !== 0) {
    throw new Fault(
      'guest',
      `${argv.join(' ')} ended with ${result.exit_code ?? `signal ${result.signal}`} in the VM.`,
    );
  }
};

const runVm = async (demo: Demo, vm: string): Promise<void> => {
  const { nexus, signal } = demo;
  demo.undo.push('remove the VM', async () => {
    const begun = performance.now();
    out(`==> Stopping and deleting VM '${vm}'\n`);
    await removeVm(nexus, vm);
    demo.times.push(['stop and delete', performance.now() - begun]);
  });
  // Without the signal: a request that was left in the middle might still make a VM.
  await step(demo, 'create', `Creating VM '${vm}': 2 vCPUs, 1 GiB, a workspace cloned from image '${IMAGE}'`, () =>
    nexus.vm.create({ name: vm, image: IMAGE }),
  );
  await step(demo, 'boot', `Starting VM '${vm}' and waiting for its guest agent`, () =>
    nexus.vm.start({ vm, timeout_ms: BOOT_MS }, { signal }),
  );
  for (const argv of COMMANDS) {
    await step(demo, argv.join(' '), `Running '${argv.join(' ')}' inside it`, () => runCommand(demo, vm, argv));
  }
};

const sayNext = async (demo: Demo, vm: string): Promise<void> => {
  const { pid } = await demo.nexus.daemon.get();
  const ctl = process.argv[1]?.endsWith('.ts') ? './nexus ctl' : 'nexusctl';
  const to = `${ctl} --socket ${demo.nexus.socket}`;
  out(`\nThe daemon (pid ${pid}) and VM '${vm}' go on. To try next:\n\n`);
  for (const words of [`exec ${vm} -- uname -a`, 'vm list', `logs -f ${vm}`, 'status']) out(`    ${to} ${words}\n`);
  out(`\nTo end it:\n\n    ${to} vm delete --yes ${vm}\n    kill ${pid}\n`);
};

const story = async (demo: Demo, dir: string, keep: boolean): Promise<void> => {
  const ours = await openDaemon(demo, dir);
  await openAssets(demo);
  const vm = await freeName(demo, ours);
  await runVm(demo, vm);
  if (!keep) return;
  await sayNext(demo, vm);
  demo.undo.commit();
};

/** Runs the demo; throws a fault if it did not work or was interrupted, after everything was undone. */
export const demo = async (cli: Cli, options: DemoOptions): Promise<void> => {
  const dir = resolve(options.data_dir ?? defaultDir());
  const abort = new AbortController();
  const interrupted = new Fault('canceled', 'The demo was interrupted.', {
    hint: 'Run it again: it goes on with what is there.',
  });
  using _ = onSignals(SIGNALS, () => {
    if (abort.signal.aborted) note('Cleaning up; please wait.\n');
    abort.abort(interrupted);
  });
  cli.onBrokenPipe = () => abort.abort(interrupted);
  await using nexus = new Nexus({ socket: join(dir, 'nexusd.sock') });
  const it: Demo = { nexus, signal: abort.signal, undo: new Undo(), times: [] };
  const begun = performance.now();
  try {
    await story(it, dir, options.keep);
  } finally {
    let failed = false;
    await it.undo.unwind((name, error) => {
      failed = true;
      note(`error: Cannot ${name}: ${plain(error instanceof Error ? error.message : String(error))}\n`);
    });
    if (failed) cli.code = 1;
  }
  abort.signal.throwIfAborted();
  it.times.push(['all of it', performance.now() - begun]);
  out(`\n${aligned([['STEP', 'TOOK'], ...it.times.map(([what, ms]) => [what, formatMs(ms)])])}`);
};
