/** A VM as it is on this host. */
import { z } from 'zod';
import { Bytes, Name, Ref, Space, TimeMs } from './common.ts';
import { ImageInspect } from './image.ts';
import { op } from './op.ts';
import { Accel, GuestFacts, LastExit, RestartPolicy, Tags, VmError, VmmKind, VmProvision } from './vm.ts';
import { GuestState, VmState } from './vm_state.ts';

const Ms = z.int().min(0).describe('milliseconds');

/** What the VMM of a VM has used since it was started. */
export const VmUsage = z.strictObject({
  cpu_ms: z.number().min(0).describe('processor time of the VMM, the guest with it'),
  memory_bytes: Bytes.describe("of the host's memory"),
  disk_read_bytes: Bytes.nullable().describe('by the guest, of all its disks; null: the VMM does not say'),
  disk_write_bytes: Bytes.nullable(),
});
export type VmUsage = z.infer<typeof VmUsage>;

export const VmDisk = z.strictObject({
  ws_id: z.string(),
  name: Name.describe('of the workspace'),
  role: z.enum(['root', 'data']),
  device: z.string().describe('in the guest'),
  mount: z.string().nullable().describe('where the guest has it'),
  size_bytes: Bytes.describe('as the guest sees it'),
  ...Space.shape,
  read_only: z.boolean(),
  path: z.string(),
});
export type VmDisk = z.infer<typeof VmDisk>;

/** How a guest is at this moment, by its own word. */
export const GuestNow = z.strictObject({
  load: z.tuple([z.number(), z.number(), z.number()]).describe('processes that run or want to: of 1, 5 and 15 min'),
  uptime_ms: Ms.describe('since its kernel came up'),
  memory_total_bytes: Bytes,
  memory_available_bytes: Bytes.describe('without swapping'),
  disks: z
    .array(z.strictObject({ path: z.string(), type: z.string(), size_bytes: Bytes, free_bytes: Bytes }))
    .describe('file systems on block devices'),
  addresses: z
    .array(z.strictObject({ interface: z.string(), address: z.string() }))
    .describe("of its networks, without the loopback's"),
  ports: z
    .array(z.strictObject({ address: z.string(), port: z.int() }))
    .describe('TCP ports on which something listens'),
});
export type GuestNow = z.infer<typeof GuestNow>;

export const VmInspect = z.strictObject({
  id: z.string(),
  name: Name,
  state: VmState,
  guest: GuestState.nullable(),
  pid: z.int().nullable(),
  api_socket: z.string().nullable().describe('on which its VMM takes orders'),
  log_path: z.string().describe('its console, as bytes; what is older is in the same with .1'),
  vmm_log_path: z.string().describe('what its VMM says'),
  cgroup: z.string().nullable().describe('of its VMM, where the host delegates one'),
  boots: z.int().min(0).describe('how often it was started, as its console counts'),
  boot_ms: Ms.nullable().describe('of the last start: from the spawn of its VMM to the bell of its guest'),
  started_at_ms: TimeMs.nullable(),
  uptime_ms: Ms.nullable(),
  vcpus: z.int(),
  memory_mib: z.int(),
  vmm: z
    .strictObject({ kind: VmmKind, version: z.string().nullable(), accel: Accel.nullable() })
    .nullable()
    .describe('of the last start'),
  usage: VmUsage.nullable(),
  disks: z.array(VmDisk),
  kernel: z
    .strictObject({ id: z.string(), version: z.string() })
    .nullable()
    .describe('with which it starts; null: there is none'),
  image: ImageInspect.nullable().describe(
    'of which its root is a clone, and what that comes from; the guest finds the same in /etc/nexus/image.yaml',
  ),
  guest_facts: GuestFacts.nullable(),
  guest_now: GuestNow.nullable().describe('null: it is not ready, or its agent is older than this'),
  provision: VmProvision.extend({
    files: z.array(z.string()).describe('their paths'),
    env: z.array(z.string()).describe('names of variables'),
    first_boot: z.boolean().describe('it has a script'),
  })
    .nullable()
    .describe('what it was given for its first boot, and how that went; null: nothing'),
  restart: z.strictObject({
    policy: RestartPolicy,
    auto_start: z.boolean(),
    at_ms: TimeMs.nullable().describe('when the daemon starts it again'),
    count: z.int().min(0),
  }),
  last_exit: LastExit.nullable(),
  error: VmError.nullable(),
  tags: Tags,
});
export type VmInspect = z.infer<typeof VmInspect>;

/** What a VM uses at this moment. */
export const VmLoad = z.strictObject({
  id: z.string(),
  name: Name,
  state: VmState,
  guest: GuestState.nullable(),
  vcpus: z.int(),
  memory_mib: z.int(),
  cpu_percent: z.number().min(0).nullable().describe('100: one processor of the host'),
  memory_bytes: Bytes.nullable(),
  disk_read_rate_bytes: z.int().min(0).nullable().describe('bytes a second'),
  disk_write_rate_bytes: z.int().min(0).nullable().describe('bytes a second'),
  uptime_ms: Ms.nullable(),
});
export type VmLoad = z.infer<typeof VmLoad>;

export const VmTopMessage = z.strictObject({
  type: z.literal('sample'),
  at_ms: TimeMs,
  vms: z.array(VmLoad).describe('those that run, by name'),
});
export type VmTopMessage = z.infer<typeof VmTopMessage>;

export const vmInspectOps = {
  'vm.inspect': op({
    method: 'GET',
    path: '/v1/vms/:vm/inspect',
    summary: 'Show a VM as it is on this host: process, sockets, files, disks, image, usage',
    input: z.strictObject({ vm: Ref }),
    output: VmInspect,
    errors: ['not_found'],
    args: ['vm'],
    tool: true,
  }),
  'vm.top': op({
    method: 'GET',
    path: '/v1/top',
    summary: 'Show what running VMs use, again and again',
    input: z.strictObject({
      vm: z.array(Ref).max(256).optional().describe('names or IDs; default: all that run'),
      interval_ms: z.int().min(200).max(3_600_000).default(2000).describe('from one sample to the next'),
      count: z.int().min(1).max(1_000_000).optional().describe('how many samples; default: without end'),
    }),
    output: VmTopMessage,
    errors: ['not_found'],
    args: ['vm...'],
    stream: 'sse',
  }),
};
