import { z } from 'zod';
import { Bytes, id, Name, Ref, TimeMs, TimeoutMs } from './common.ts';
import { FAULT_CODES } from './fault.ts';
import { Nothing, op } from './op.ts';
import { GuestState, VmState } from './vm_state.ts';

export const Accel = z.enum(['kvm', 'tcg']).describe('kvm: the processor runs the guest; tcg: it is emulated');
export type Accel = z.infer<typeof Accel>;

/** How a VMM ended, as far as it can be known (an adopted process leaves no exit status). */
export const LastExit = z.strictObject({
  at_ms: TimeMs,
  reason: z.string().describe('one sentence'),
  exit_code: z.int().nullable(),
  signal: z.string().nullable(),
  console_tail: z.array(z.string()).describe('the last lines of the console, control characters stripped'),
});
export type LastExit = z.infer<typeof LastExit>;

export const VmError = z.strictObject({
  at_ms: TimeMs,
  code: z.enum(FAULT_CODES),
  detail: z.string(),
  hint: z.string().optional(),
});
export type VmError = z.infer<typeof VmError>;

export const GuestFacts = z.strictObject({
  agent_version: z.string(),
  kernel: z.string(),
  os: z.string(),
  hostname: z.string(),
  init: z.string(),
  boot_id: z.string(),
});
export type GuestFacts = z.infer<typeof GuestFacts>;

export const VmmKind = z.enum(['firecracker', 'qemu']);
export type VmmKind = z.infer<typeof VmmKind>;

export const RestartPolicy = z
  .enum(['never', 'on-crash', 'always'])
  .describe('on-crash: after an end that nobody asked for; always: also when the guest powered off');
export type RestartPolicy = z.infer<typeof RestartPolicy>;

/** Labels of a VM, such as team=a. */
export const Tags = z
  .record(
    z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/, "a tag's name has 1 to 63 of A-Z a-z 0-9 . _ / -"),
    z.string().max(128),
  )
  .refine(tags => Object.keys(tags).length <= 64, 'a VM has at most 64 tags');
export type Tags = z.infer<typeof Tags>;

export const MAX_RATE = 2 ** 40;

/** What is chosen when a VM is made, and may be changed later. */
const chosen = {
  vcpus: z.int().min(1).max(32),
  memory_mib: z
    .int()
    .min(64)
    .max(1024 * 1024),
  restart: RestartPolicy,
  auto_start: z.boolean().describe('start it when the daemon starts after a start of the host'),
  start_order: z.int().min(0).max(1_000_000).describe('VMs of a lower number start first'),
  disk_rate_bytes: z.int().min(1024).max(MAX_RATE).nullable().describe('limit for each disk, bytes a second'),
  disk_rate_ops: z.int().min(1).max(MAX_RATE).nullable().describe('limit for each disk, requests a second'),
  vmm: VmmKind.nullable().describe('null: Firecracker where KVM runs guests and it is there, else QEMU'),
  tags: Tags,
};

export const Vm = z.strictObject({
  id: id('vm'),
  name: Name,
  state: VmState,
  guest: GuestState.nullable(),
  ...chosen,
  image_id: z.string().nullable(),
  kernel_id: z.string().nullable().describe('null: the newest kernel at the time of a start'),
  root_ws_id: z.string().nullable(),
  runs_on: VmmKind.nullable().describe('the VMM of the last start'),
  vmm_version: z.string().nullable().describe('its version'),
  accel: Accel.nullable(),
  pid: z.int().nullable(),
  vsock_cid: z.int().min(3).describe("the guest's address on its vsock (Firecracker)"),
  guest_facts: GuestFacts.nullable(),
  error: VmError.nullable().describe('why the last start failed'),
  last_exit: LastExit.nullable(),
  restart_at_ms: TimeMs.nullable().describe('when the daemon starts it again'),
  restart_count: z.int().min(0).describe('starts by the daemon in a row, after ends that came soon'),
  created_at_ms: TimeMs,
  started_at_ms: TimeMs.nullable(),
  stopped_at_ms: TimeMs.nullable(),
  boot_ms: z.int().min(0).nullable().describe('of the last start: from the spawn of its VMM to the bell of its guest'),
});
export type Vm = z.infer<typeof Vm>;

export const VmHistoryEntry = z.strictObject({
  at_ms: TimeMs,
  from: VmState.nullable(),
  to: VmState,
  why: z.string(),
  actor: z.string().describe('who asked: api, daemon, guest'),
});
export type VmHistoryEntry = z.infer<typeof VmHistoryEntry>;

export type NewVmInput = z.output<(typeof vmOps)['vm.create']['input']>;

/** A VM that was never started, but for what the store allocates. */
export const blankVm = (input: NewVmInput, id: string, created_at_ms: number): Omit<Vm, 'vsock_cid'> => ({
  id,
  name: input.name,
  state: 'created',
  guest: null,
  vcpus: input.vcpus,
  memory_mib: input.memory_mib,
  restart: input.restart,
  auto_start: input.auto_start,
  start_order: input.start_order,
  disk_rate_bytes: input.disk_rate_bytes,
  disk_rate_ops: input.disk_rate_ops,
  vmm: input.vmm,
  tags: input.tags,
  image_id: null,
  kernel_id: null,
  root_ws_id: null,
  runs_on: null,
  vmm_version: null,
  accel: null,
  pid: null,
  guest_facts: null,
  error: null,
  last_exit: null,
  restart_at_ms: null,
  restart_count: 0,
  created_at_ms,
  started_at_ms: null,
  stopped_at_ms: null,
  boot_ms: null,
});

const VmRef = z.strictObject({ vm: Ref });
const StopTimeout = TimeoutMs.default(30_000).describe('how long the guest gets before it is ended by force');

export const vmOps = {
  'vm.create': op({
    method: 'POST',
    path: '/v1/vms',
    summary: 'Create a VM with a root workspace of its own',
    input: z.strictObject({
      name: Name,
      image: Ref.optional().describe('default: the newest image'),
      vcpus: chosen.vcpus.default(2),
      memory_mib: chosen.memory_mib.default(1024),
      root_size_bytes: Bytes.min(16 * 1024 * 1024)
        .max(64 * 1024 ** 4)
        .default(8 * 1024 ** 3)
        .describe('size of the root workspace; it is sparse'),
      kernel: Ref.optional().describe('ID or version; default: the newest kernel at each start'),
      ws: Ref.optional().describe('an existing workspace as root disk instead of a new one'),
      restart: chosen.restart.default('never'),
      auto_start: chosen.auto_start.default(false),
      start_order: chosen.start_order.default(0),
      disk_rate_bytes: chosen.disk_rate_bytes.default(null),
      disk_rate_ops: chosen.disk_rate_ops.default(null),
      vmm: chosen.vmm.default(null),
      tags: chosen.tags.default({}),
    }),
    output: Vm,
    errors: ['invalid', 'not_found', 'exists', 'in_use', 'no_room'],
    args: ['name'],
    tool: true,
  }),
  'vm.list': op({
    method: 'GET',
    path: '/v1/vms',
    summary: 'List VMs, newest first',
    input: z.strictObject({
      state: VmState.optional(),
      tag: z
        .array(z.string().max(192))
        .max(64)
        .optional()
        .describe('only VMs with this tag: NAME=VALUE, or NAME alone'),
    }),
    output: z.array(Vm),
    columns: ['id', 'name', 'state', 'guest', 'vcpus', 'memory_mib', 'runs_on', 'pid'],
    tool: true,
  }),
  'vm.update': op({
    method: 'PATCH',
    path: '/v1/vms/:vm',
    summary: 'Change what was chosen for a VM; its machine is as chosen from its next start on',
    input: z.strictObject({
      vm: Ref,
      vcpus: chosen.vcpus.optional(),
      memory_mib: chosen.memory_mib.optional(),
      restart: chosen.restart.optional(),
      auto_start: chosen.auto_start.optional(),
      start_order: chosen.start_order.optional(),
      disk_rate_bytes: chosen.disk_rate_bytes.optional(),
      disk_rate_ops: chosen.disk_rate_ops.optional(),
      vmm: chosen.vmm.optional(),
      tags: chosen.tags.optional().describe('all tags anew'),
    }),
    output: Vm,
    errors: ['not_found', 'invalid', 'no_room'],
    args: ['vm'],
    tool: true,
  }),
  'vm.get': op({
    method: 'GET',
    path: '/v1/vms/:vm',
    summary: 'Show one VM',
    input: VmRef,
    output: Vm,
    errors: ['not_found'],
    args: ['vm'],
    tool: true,
  }),
  'vm.start': op({
    method: 'POST',
    path: '/v1/vms/:vm/start',
    summary: 'Start a VM',
    input: z.strictObject({
      vm: Ref,
      wait: z
        .enum(['ready', 'running', 'none'])
        .default('ready')
        .describe('ready: until the guest agent has answered; running: until the VMM runs; none: return at once'),
      timeout_ms: TimeoutMs.default(60_000).describe('how long to wait for the guest'),
    }),
    output: Vm,
    errors: ['not_found', 'bad_state', 'busy', 'host', 'vmm', 'timeout', 'no_room', 'canceled'],
    args: ['vm'],
    tool: true,
  }),
  'vm.stop': op({
    method: 'POST',
    path: '/v1/vms/:vm/stop',
    summary: 'Stop a VM: the guest ends what runs, syncs and unmounts',
    input: z.strictObject({
      vm: Ref,
      force: z.boolean().default(false).describe('end the VMM at once, as if power was cut'),
      timeout_ms: StopTimeout,
    }),
    output: Vm,
    errors: ['not_found', 'bad_state', 'busy', 'vmm', 'canceled', 'no_room'],
    args: ['vm'],
    tool: true,
  }),
  'vm.delete': op({
    method: 'DELETE',
    path: '/v1/vms/:vm',
    summary: 'Delete a VM in any state, with the workspace that belongs to it',
    input: z.strictObject({
      vm: Ref,
      keep_disk: z.boolean().default(false).describe('keep the root workspace, detached'),
    }),
    output: Nothing,
    errors: ['not_found', 'busy', 'vmm', 'no_room'],
    args: ['vm'],
    tool: true,
  }),
  'vm.history': op({
    method: 'GET',
    path: '/v1/vms/:vm/history',
    summary: 'Show every transition of a VM, newest first',
    input: z.strictObject({ vm: Ref, limit: z.int().min(1).max(10_000).default(100) }),
    output: z.array(VmHistoryEntry),
    errors: ['not_found'],
    args: ['vm'],
    columns: ['at_ms', 'from', 'to', 'why', 'actor'],
    tool: true,
  }),
};
