/** A VM as it is on its host, for people. */
import type { VmInspect } from '../api/vm_inspect.ts';
import { formatBytes, formatMs } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { aligned, cell, table, timeText } from './show.ts';

type Line = [label: string, text: string];

const MIB = 1024 * 1024;
const EMULATED = { kvm: 'on KVM', tcg: 'emulated' };

const bytes = (value: number | null): string => (value === null ? '-' : formatBytes(value));

const machine = (vm: VmInspect): Line[] => {
  const { vmm, usage } = vm;
  const accel = vmm?.accel == null ? '' : `, ${EMULATED[vmm.accel]}`;
  const booted = vm.boot_ms === null ? '' : `, booted in ${formatMs(vm.boot_ms)}`;
  const io = usage && `${bytes(usage.disk_read_bytes)} read, ${bytes(usage.disk_write_bytes)} written`;
  return [
    ['vmm', vmm === null ? '-' : `${vmm.kind} ${vmm.version ?? ''}${accel}`],
    ['process', cell('pid', vm.pid)],
    ['api socket', cell('', vm.api_socket)],
    ['cgroup', cell('', vm.cgroup)],
    ['console', vm.log_path],
    ['vmm log', vm.vmm_log_path],
    ['up', vm.uptime_ms === null ? '-' : `${formatMs(vm.uptime_ms)}${booted}`],
    ['boots', String(vm.boots)],
    ['cpu', `${vm.vcpus} vCPU${vm.vcpus === 1 ? '' : 's'}${usage === null ? '' : `, ${formatMs(usage.cpu_ms)} used`}`],
    [
      'memory',
      `${formatBytes(vm.memory_mib * MIB)}${usage === null ? '' : `, ${bytes(usage.memory_bytes)} of the host`}`,
    ],
    ['disk i/o', io ?? '-'],
  ];
};

/** From the image of the root down to the archive. */
const chain = (image: NonNullable<VmInspect['image']>): Line[] => {
  const { build, template, base, rootfs } = image;
  const agent = image.agent_version === null ? 'no agent' : `agent ${image.agent_version}`;
  const now =
    template === null || template.version === build?.template_version ? '' : `, now ${template.version ?? 'removed'}`;
  const proofs = rootfs === null || rootfs.proofs.length === 0 ? 'not verified' : rootfs.proofs.join(', ');
  return [
    ['image', `${image.name}: ${image.os}, ${image.arch}, init ${image.init}, ${agent}`],
    ['', `${image.id}, made ${timeText(image.created_at_ms)}`],
    ['build', build === null ? 'imported' : `${build.id} of ${build.source_type} ${build.source}`],
    [
      'template',
      template === null ? '-' : `${template.name}, version ${build?.template_version ?? '?'}${now}, ${template.id}`,
    ],
    ['built on', base === null ? '' : `${base.name}, ${base.id}`],
    ['rootfs', rootfs === null ? '-' : `${rootfs.distro}:${rootfs.version}, ${rootfs.id}`],
    ['', rootfs === null ? '' : `${rootfs.source} (${proofs})`],
  ];
};

const made = ({ image, kernel, guest_facts: guest }: VmInspect): Line[] => [
  ...(image === null ? [['image', '-'] satisfies Line] : chain(image)),
  ['kernel', kernel === null ? '-' : `${kernel.version}, ${kernel.id}`],
  ['guest', guest === null ? '-' : `${guest.os}, Linux ${guest.kernel}, host name ${guest.hostname}`],
  ['', guest === null ? '' : `agent ${guest.agent_version}, init ${guest.init}, boot ${guest.boot_id}`],
  ...(guest?.problems ?? []).map((problem): Line => ['problem', problem]),
];

const space = (free: number, of: number): string => `${formatBytes(free)} of ${formatBytes(of)} free`;

const inside = ({ guest_now: now }: VmInspect): Line[] =>
  now === null
    ? []
    : [
        ['load', now.load.map(n => n.toFixed(2)).join(' ')],
        ['guest memory', space(now.memory_available_bytes, now.memory_total_bytes)],
        ...now.disks.map(
          (d, n): Line => [n === 0 ? 'guest disks' : '', `${d.path}: ${space(d.free_bytes, d.size_bytes)}`],
        ),
        ['addresses', now.addresses.map(a => `${a.interface} ${a.address}`).join(', ')],
        [
          'listens on',
          now.ports.map(p => `${p.address.includes(':') ? `[${p.address}]` : p.address}:${p.port}`).join(', '),
        ],
      ];

const TO_COME = { pending: 'not all of it yet', done: 'all of it', failed: 'failed' };

/** What it was given for its first boot, and how that went. */
const provisioned = ({ provision: given }: VmInspect): Line[] => {
  if (given === null) return [];
  const { files, env, first_boot, state, error, output, ended_at_ms } = given;
  const what = [...files, ...env.map(name => `$${name}`), ...(first_boot ? ['a first-boot script'] : [])];
  const when = ended_at_ms === null ? '' : `${timeText(ended_at_ms)}  `;
  return [
    ['given', what.join(', ')],
    ['provisioned', error === null ? TO_COME[state] : `${when}${error.detail}`],
    ...output.slice(-10).map((line): Line => ['', `| ${line}`]),
  ];
};

const fate = ({ restart, last_exit: exit, error, tags }: VmInspect): Line[] => {
  const again = restart.at_ms === null ? '' : `, again at ${timeText(restart.at_ms)}`;
  const auto = restart.auto_start ? ', started with the host' : '';
  const code = exit?.signal ?? (exit?.exit_code == null ? undefined : `exit code ${exit.exit_code}`);
  return [
    ['restart', `${restart.policy}${again}${auto}`],
    ['tags', cell('', tags)],
    ['error', error === null ? '-' : `${timeText(error.at_ms)}  ${error.detail}`],
    [
      'last exit',
      exit === null ? '-' : `${timeText(exit.at_ms)}  ${exit.reason}${code === undefined ? '' : ` (${code})`}`,
    ],
    ...(exit?.console_tail ?? []).slice(-5).map((line): Line => ['', `| ${line}`]),
  ];
};

const DISKS = ['name', 'role', 'device', 'mount', 'size_bytes', 'own_bytes', 'shared_bytes', 'read_only', 'path'];

export const inspectText = (vm: VmInspect): string => {
  const guest = vm.guest === null ? '' : `, guest ${vm.guest}`;
  const shown = (lines: Line[]) => aligned(lines.filter(([, text]) => text !== ''));
  const disks = vm.disks.length === 0 ? '' : `\n${table(DISKS, vm.disks)}`;
  return `${plain(vm.name)}: ${vm.state}${guest} (${vm.id})\n\n${shown([...machine(vm), ...made(vm), ...inside(vm), ...provisioned(vm), ...fate(vm)])}${disks}`;
};
