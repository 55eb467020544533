/** What a Firecracker machine is made of: its arguments and the requests that configure it. Pure. */
import { kernelLine } from './cmdline.ts';
import { instanceId } from './find.ts';
import type { MachineSpec } from './machine.ts';
import { API_SOCKET, METRICS_FIFO, OWN_LOG, VSOCK_SOCKET } from './run_dir.ts';
import type { PassedFds } from './spawn.ts';

/** Firecracker appends ` pci=off root=/dev/vda rw` and, in older versions, an entry for each device. */
const RESERVE = 64;
/** Its connections (1023 at most) are a descriptor each; it makes its table as long as it may at the start. */
const MAX_FILES = 4096;

/**
 * Reset is the guest's way to end: through the keyboard controller, which ends the process; a panic does it at once. Most of the
 * probing of that controller is skipped, tens of milliseconds; Ctrl-Alt-Del still works.
 */
export const kernelCmdline = (spec: MachineSpec): string =>
  kernelLine(
    [
      ...['console=ttyS0', 'reboot=k', 'panic=-1', 'quiet', '8250.nr_uarts=1'],
      ...['i8042.noaux', 'i8042.nomux', 'i8042.dumbkbd'],
      ...['nexus.transport=vsock', ...spec.cmdline],
    ],
    RESERVE,
  );

/** Paths are relative to its working directory, or names of descriptors: no length of ours can make one too long. */
export const firecrackerArgv = (spec: MachineSpec, program: string): string[] => [
  ...['prlimit', `--nofile=${MAX_FILES}`, program],
  ...['--id', instanceId(spec.id), '--api-sock', API_SOCKET],
  ...['--log-path', OWN_LOG, '--level', 'Error', '--metrics-path', METRICS_FIFO],
];

export interface Put {
  path: string;
  body: object;
}

/** A bucket for one second. */
const bucket = (per_second: number | null) =>
  per_second === null ? undefined : { size: per_second, refill_time: 1000 };

const limiter = ({ disk_rate_bytes, disk_rate_ops }: MachineSpec) => {
  if (disk_rate_bytes === null && disk_rate_ops === null) return {};
  return { rate_limiter: { bandwidth: bucket(disk_rate_bytes), ops: bucket(disk_rate_ops) } };
};

export const passedPath = (fd: number): string => `/proc/self/fd/${fd}`;

export const driveId = (index: number): string => `disk${index}`;

const drive = (spec: MachineSpec, fds: PassedFds, index: number): Put => {
  const drive_id = driveId(index);
  const { read_only = true } = spec.disks[index] ?? {};
  return {
    path: `/drives/${drive_id}`,
    body: {
      drive_id,
      path_on_host: passedPath(fds.disks[index] ?? -1),
      is_root_device: index === 0,
      is_read_only: read_only,
      // else no flush is offered, and the guest's fsync is a lie
      cache_type: read_only ? 'Unsafe' : 'Writeback',
      io_engine: 'Sync',
      ...limiter(spec),
    },
  };
};

/** Everything before the start, in its order. */
export const configuration = (spec: MachineSpec, fds: PassedFds): Put[] => [
  { path: '/machine-config', body: { vcpu_count: spec.vcpus, mem_size_mib: spec.memory_mib, smt: false } },
  {
    path: '/boot-source',
    body: {
      kernel_image_path: passedPath(fds.kernel),
      initrd_path: passedPath(fds.initrd),
      boot_args: kernelCmdline(spec),
    },
  },
  ...spec.disks.map((_, index) => drive(spec, fds, index)),
  { path: '/entropy', body: {} },
  { path: '/vsock', body: { guest_cid: spec.vsock_cid, uds_path: VSOCK_SOCKET } },
];
