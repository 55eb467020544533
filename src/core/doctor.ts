/**
 * What this host can do, each line with what mends it. Everything is tried anew: what the daemon found at its start may have been
 * mended since. It needs no daemon.
 */
import { access, constants, mkdtemp, rm, stat, statfs } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import type { Check, DoctorReport } from '../api/daemon.ts';
import { Fault } from '../api/fault.ts';
import { wayToRoot } from '../assets/debian-rootfs.ts';
import { pickDisks } from '../disk/pick.ts';
import { findTools, findUnpacker } from '../images/tools.ts';
import { openCgroups } from '../lib/cgroup.ts';
import { exists } from '../lib/files.ts';
import type { Log } from '../lib/log.ts';
import { runAny } from '../lib/proc.ts';
import { formatBytes } from '../lib/size.ts';
import { plainStep } from '../lib/step.ts';
import { lockDataDir } from '../store/lock.ts';
import { openVmms } from '../vmm/drivers.ts';
import type { HostFacts } from '../vmm/host_facts.ts';
import type { VmmFacts } from '../vmm/machine.ts';
import type { Host } from './host.ts';

export interface Examined {
  data_dir: string;
  /** Folder of the guest agent and of nexus-probe. */
  agent_dir: string;
  qemu?: string | undefined;
  firecracker?: string | undefined;
  log: Log;
  /** The daemon that asks; undefined: none. */
  host?: Host;
}

const LOOK_MS = 20_000;
/** An image and some VMs. */
const SPARSE_BYTES = 5 * 1024 ** 3;
/** The database and the logs of the daemon could not be written. */
const FULL_BYTES = 64 * 1024 ** 2;

const isRoot = (): boolean => process.getuid?.() === 0;
const ok = (name: string, detail: string): Check => ({ name, level: 'ok', detail });
/** Nothing that is wrong goes without what mends it. */
const warn = (name: string, detail: string, hint: string): Check => ({ name, level: 'warn', detail, hint });
const failed = (name: string, detail: string, hint: string): Check => ({ name, level: 'fail', detail, hint });
const hintOf = (error: unknown, otherwise: string): string =>
  error instanceof Fault && error.hint !== undefined ? error.hint : otherwise;
const sentence = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).replace(/\.$/, '');

/** Looks at everything. Never rejects. */
export const examine = async (at: Examined): Promise<DoctorReport> => {
  const looks: [name: string, look: () => Promise<Check[]>][] = [
    ['vmm', () => machines(at)],
    ['data', () => dataDir(at)],
    ['disk', () => disk(at)],
    ['space', async () => [await space(at)]],
    ['agent', async () => [await agent(at)]],
    ['assets', () => assets(at)],
    ['mke2fs', async () => [await imageTools()]],
    ['packages', () => packages()],
    ['cgroup', async () => [await cgroup(at)]],
    ['user-namespaces', async () => [await namespaces()]],
  ];
  const guarded = looks.map(([name, look]) =>
    look().catch(error => [
      warn(name, `it cannot be told: ${sentence(error)}`, hintOf(error, 'mend that, and ask again')),
    ]),
  );
  const checks = (await Promise.all(guarded)).flat();
  return { able: checks.every(check => check.level !== 'fail'), checks };
};

const machines = async ({ agent_dir, qemu, firecracker, log, host }: Examined): Promise<Check[]> => {
  const probe = join(agent_dir, 'nexus-probe');
  const vmms = await openVmms({ probe, qemu, firecracker, log, step: plainStep });
  const facts = vmms.all.map(vmm => vmm.facts());
  const able = facts.find(one => one.accel !== null);
  return [
    kvm(vmms.host),
    ...facts.map(one => vmmCheck(one, vmms.host)),
    accelerator(facts, able, { host, kvm_hint: kvmHint(vmms.host) }),
    await isolation(able),
    tsc(vmms.host, able, probe),
  ];
};

/** The probe says one wherever KVM does not work. */
const kvmHint = ({ kvm: found }: HostFacts): string => found.hint ?? 'take a host on which /dev/kvm runs guests';

const kvm = (facts: HostFacts): Check => {
  const { usable, why, reason } = facts.kvm;
  return usable ? ok('kvm', why) : { ...warn('kvm', why, kvmHint(facts)), reason };
};

/** One that has no hint of its own cannot be had here: the other one needs KVM. */
const vmmCheck = ({ kind, program, version, accel, why, hint }: VmmFacts, host: HostFacts): Check => {
  if (version === null) return warn(kind, why, hint ?? kvmHint(host));
  return accel === null
    ? warn(kind, `${program} ${version}; ${why}`, hint ?? kvmHint(host))
    : ok(kind, `${program} ${version}`);
};

const accelerator = (
  facts: readonly VmmFacts[],
  able: VmmFacts | undefined,
  { host, kvm_hint }: { host: Host | undefined; kvm_hint: string },
): Check => {
  if (able === undefined) {
    const hint = facts.findLast(one => one.hint !== undefined)?.hint ?? kvm_hint;
    return failed('accelerator', `no VM can run: ${facts.map(one => one.why).join('; ')}`, hint);
  }
  const known = host?.vmms.of(able.kind).facts().accel;
  if (known !== undefined && known !== able.accel)
    return warn(
      'accelerator',
      `${able.kind} could use ${able.accel}, but the daemon found ${known ?? 'none'} at its start`,
      'restart nexusd; VMs go on',
    );
  if (able.accel === 'kvm') return ok('accelerator', `VMs run on ${able.kind} with KVM`);
  const slow = `VMs run on ${able.kind}, emulated: they work, and are many times slower than with KVM`;
  return warn('accelerator', slow, kvm_hint);
};

/** Who the VMMs run as. */
const isolation = async (able: VmmFacts | undefined): Promise<Check> => {
  if (!isRoot())
    return ok('isolation', `VMMs run as ${userInfo().username}; started as root, each has a user of its own`);
  const detail = 'each VMM has a user of its own';
  if (!(await works(['setpriv', '--version'])))
    return failed('isolation', `${detail}, which takes setpriv, and it is missing`, 'apt-get install util-linux');
  const device = able?.accel === 'kvm' ? await stat('/dev/kvm').catch(() => undefined) : undefined;
  const everybody = 0o006;
  const group = 0o060;
  if (device === undefined || (device.mode & everybody) === everybody) return ok('isolation', detail);
  if (device.gid !== 0 && (device.mode & group) === group) return ok('isolation', detail);
  const hint = 'groupadd -f -r kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm';
  return failed('isolation', `${detail}, and /dev/kvm is for root alone`, hint);
};

const tsc = ({ tsc_khz }: HostFacts, able: VmmFacts | undefined, probe: string): Check => {
  if (tsc_khz !== null) return ok('tsc', `${(tsc_khz / 1e6).toFixed(2)} GHz`);
  const detail = 'the rate of the time stamp counter is not known';
  if (able?.accel === 'kvm') return ok('tsc', detail);
  return warn('tsc', `${detail}: clocks of emulated guests may be wrong`, `${probe} tsc, which says why`);
};

/** The nearest directory that is there. */
const nearest = async (path: string): Promise<string> => ((await exists(path)) ? path : nearest(dirname(path)));

const dataDir = async ({ data_dir, host }: Examined): Promise<Check[]> => {
  if (host !== undefined) return [ok('data', `${data_dir}, held by this daemon (process ${process.pid})`)];
  const there = await nearest(data_dir);
  const writable = await access(there, constants.W_OK | constants.X_OK).then(
    () => true,
    () => false,
  );
  if (!writable)
    return [failed('data', `${there} is not writable for ${userInfo().username}`, 'nexusd --data-dir DIR')];
  if (there !== data_dir) return [ok('data', `${data_dir} is not there yet; nexusd makes it`)];
  // the lock is a file: none is made by looking
  if (!(await exists(join(data_dir, 'daemon.lock')))) return [ok('data', `${data_dir}; no daemon runs on it`)];
  try {
    await using _free = await lockDataDir(data_dir);
    return [ok('data', `${data_dir}; no daemon runs on it`)];
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'in_use')) throw error;
    return [ok('data', `${data_dir}; a daemon runs on it`)];
  }
};

const disk = async ({ data_dir, log, host }: Examined): Promise<Check[]> => {
  const there = await nearest(data_dir);
  const disks = host?.disks ?? (there === data_dir ? await pickDisks(data_dir, log) : undefined);
  return disks === undefined ? [] : [ok('disk', `${disks.backend}: ${disks.why}`)];
};

const space = async ({ data_dir }: Examined): Promise<Check> => {
  const there = await nearest(data_dir);
  const { bavail, bsize } = await statfs(there);
  const free = bavail * bsize;
  const detail = `${formatBytes(free)} free`;
  if (free >= SPARSE_BYTES) return ok('space', detail);
  return (free < FULL_BYTES ? failed : warn)('space', detail, `free some space on the file system of ${there}`);
};

const works = (argv: readonly string[]): Promise<boolean> =>
  runAny(argv, { timeout_ms: LOOK_MS }).then(
    ({ code }) => code === 0,
    () => false,
  );

const agent = async ({ agent_dir }: Examined): Promise<Check> => {
  const name = `nexus-agent-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}`;
  const found = await runAny([join(agent_dir, name), 'version'], { timeout_ms: LOOK_MS }).catch(() => undefined);
  if (found?.code === 0) return ok('agent', `${name} ${found.stdout.trim()}`);
  return failed(
    'agent',
    `the guest agent is not built: there is no ${name} in ${agent_dir}`,
    './nexus build, or name its folder in NEXUS_AGENT_DIR',
  );
};

const assets = async ({ host }: Examined): Promise<Check[]> => {
  if (host === undefined) return [];
  const [[kernel], [image]] = await Promise.all([host.store.assets.kernel.list(), host.store.listImages()]);
  return [
    kernel === undefined
      ? warn('kernel', 'there is no kernel yet', 'nexusctl kernel download --provider debian')
      : ok('kernel', `${kernel.version}, ${kernel.arch}`),
    image === undefined
      ? warn(
          'image',
          'there is no image yet',
          'nexusctl rootfs download debian 12 && nexusctl image build base --rootfs debian:12',
        )
      : ok('image', `${image.name}: ${image.os}`),
  ];
};

const imageTools = async (): Promise<Check> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-doctor-'));
  try {
    const { mke2fs, version, reads_tar } = await findTools({}, dir, AbortSignal.timeout(LOOK_MS));
    if (reads_tar) return ok('mke2fs', `${mke2fs} ${version}`);
    await findUnpacker();
    return ok('mke2fs', `${mke2fs} ${version}; from 1.47.2 on images are built faster`);
  } catch (error) {
    return warn('mke2fs', sentence(error), hintOf(error, 'apt-get install e2fsprogs'));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

/** What kernels and root file systems are made with. */
const packages = async (): Promise<Check[]> => {
  const need = ['apt-get', 'mmdebstrap', 'xz'];
  const there = await Promise.all(need.map(program => works([program, '--version'])));
  const missing = need.filter((_, i) => !there[i]);
  if (missing.length > 0) {
    const names = missing.map(name => (name === 'xz' ? 'xz-utils' : name === 'apt-get' ? 'apt' : name));
    return [
      warn('packages', `nothing can be downloaded without ${missing.join(', ')}`, `apt-get install ${names.join(' ')}`),
    ];
  }
  try {
    const { mode } = await wayToRoot(AbortSignal.timeout(LOOK_MS));
    return [ok('packages', `apt and mmdebstrap (as ${mode})`)];
  } catch (error) {
    return [warn('packages', sentence(error), hintOf(error, 'apt-get install fakechroot fakeroot'))];
  }
};

const cgroup = async ({ data_dir, host }: Examined): Promise<Check> => {
  const { base, why } = host?.cgroups ?? (await openCgroups(data_dir));
  if (base !== null) return ok('cgroup', `each VMM has a group of its own, ${why}`);
  const hint = isRoot()
    ? 'mount -t cgroup2 cgroup2 /sys/fs/cgroup, or mount -o remount,rw /sys/fs/cgroup where it is read-only'
    : 'systemd-run --user --scope -p Delegate=yes nexusd';
  return warn('cgroup', `VMMs have no groups of their own: ${why}`, hint);
};

const namespaces = async (): Promise<Check> => {
  if (await works(['unshare', '--user', '--map-root-user', 'true'])) return ok('user-namespaces', 'they can be made');
  const detail = 'they cannot be made';
  if (isRoot()) return ok('user-namespaces', `${detail}; root needs none`);
  const apparmor = await exists('/proc/sys/kernel/apparmor_restrict_unprivileged_userns');
  const hint = apparmor
    ? 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'
    : 'sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1';
  return warn('user-namespaces', detail, hint);
};
