/** The command line of a QEMU machine. Pure. */
import { kernelLine } from './cmdline.ts';
import type { MachineSpec, VmmFacts } from './machine.ts';
import { BUS_PORTS } from './ports.ts';
import { QMP_SOCKET } from './run_dir.ts';
import type { PassedFds } from './spawn.ts';

/**
 * Reset is the guest's way to end (`-no-reboot`), by triple fault, for microvm has no keyboard controller; a panic does it at once.
 * Under emulation a busy host makes the calibration of the TSC fail or wrong: the guest's TSC is the host's, so its rate is given.
 */
export const kernelCmdline = (spec: MachineSpec, { accel, tsc_khz }: Pick<VmmFacts, 'accel' | 'tsc_khz'>): string => {
  const words = ['console=ttyS0', 'reboot=t', 'panic=-1', 'quiet'];
  if (accel === 'tcg') {
    if (tsc_khz !== null) words.push(`tsc_early_khz=${tsc_khz}`);
    words.push('tsc=reliable', 'no_timer_check');
  }
  words.push('nexus.transport=serial', ...spec.cmdline);
  return kernelLine(words);
};

/** QEMU's names for limits a second; a bucket of its own for each disk. */
const limits = ({ disk_rate_bytes, disk_rate_ops }: MachineSpec): Record<string, number> | undefined => {
  if (disk_rate_bytes === null && disk_rate_ops === null) return undefined;
  return {
    ...(disk_rate_bytes === null ? {} : { 'bps-total': disk_rate_bytes }),
    ...(disk_rate_ops === null ? {} : { 'iops-total': disk_rate_ops }),
  };
};

const blockdev = (node: object): string[] => ['-blockdev', JSON.stringify(node)];

/** Of the node of a disk. */
export const diskName = (index: number): string => `disk${index}`;

const disk = (spec: MachineSpec, fd: number, index: number): string[] => {
  const off = { direct: false, 'no-flush': false };
  const read_only = spec.disks[index]?.read_only ?? true;
  const name = diskName(index);
  const file = {
    driver: 'file',
    filename: `/dev/fdset/${index + 1}`,
    'read-only': read_only,
    'auto-read-only': false,
    locking: 'on',
    discard: 'unmap',
    aio: 'threads',
    cache: off,
  };
  const raw = { driver: 'raw', 'read-only': read_only, discard: 'unmap', cache: off, file };
  const limit = limits(spec);
  const group = `limit${index}`;
  const throttle = { driver: 'throttle', 'node-name': name, 'throttle-group': group, 'read-only': read_only };
  return [
    '-add-fd',
    `fd=${fd},set=${index + 1}`,
    ...(limit === undefined
      ? blockdev({ ...raw, 'node-name': name })
      : [
          ...['-object', JSON.stringify({ 'qom-type': 'throttle-group', id: group, limits: limit })],
          ...blockdev({ ...throttle, discard: 'unmap', cache: off, file: { ...raw, 'node-name': `${name}.file` } }),
        ]),
    // write-cache=on with a cache that honours flushes: the guest's fsync is on the host's disk when it returns
    '-device',
    `virtio-blk-device,drive=${name},write-cache=on`,
  ];
};

/**
 * An emulated guest's processors share one thread of the host. With a thread for each, QEMU 7.2 lets one of them run what another has
 * just patched away: Linux patches itself with breakpoints (static keys), and such a guest died of `int3` in one boot of a hundred, and
 * within 15 s when it patched without end; with one thread never. Its boot takes no longer.
 */
const EMULATED = ['-accel', 'tcg,thread=single', '-cpu', 'max'];

export const qemuArgs = (spec: MachineSpec, facts: Pick<VmmFacts, 'accel' | 'tsc_khz'>, fds: PassedFds): string[] => [
  ...['-name', spec.id],
  ...['-M', 'microvm'],
  ...(facts.accel === 'kvm' ? ['-accel', 'kvm', '-cpu', 'host'] : EMULATED),
  ...['-smp', String(spec.vcpus), '-m', `${spec.memory_mib}M`],
  ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-S'],
  ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
  ...['-qmp', `unix:${QMP_SOCKET},server=on,wait=off`],
  ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
  ...['-kernel', `/proc/self/fd/${fds.kernel}`, '-initrd', `/proc/self/fd/${fds.initrd}`],
  ...['-append', kernelCmdline(spec, facts)],
  ...spec.disks.flatMap((_, i) => disk(spec, fds.disks[i] ?? -1, i)),
  ...['-object', 'rng-builtin,id=rng', '-device', 'virtio-rng-device,rng=rng'],
  ...['-device', `virtio-serial-device,id=vs,max_ports=${BUS_PORTS}`],
];
