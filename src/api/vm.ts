import { z } from 'zod';
import { Bytes, id, Name, Ref, TimeMs, TimeoutMs } from './common.ts';
import { FAULT_CODES } from './fault.ts';
import { Nothing, op } from './op.ts';

export const VmState = z.enum([
  'created',
  'starting',
  'running',
  'paused',
  'suspended',
  'stopping',
  'stopped',
  'crashed',
  'failed',
]);
export type VmState = z.infer<typeof VmState>;

/** What the guest's own channel says; null while no guest can be there. */
export const GuestState = z.enum(['connecting', 'ready', 'unreachable']);
export type GuestState = z.infer<typeof GuestState>;

export type VmVerb = 'start' | 'stop' | 'delete' | 'exec' | 'attach';

/** Which verb is allowed in which state. The daemon, the CLI and the console all read this table. */
export const VM_VERBS: Record<VmVerb, readonly VmState[]> = {
  start: ['created', 'stopped', 'crashed', 'failed'],
  stop: ['starting', 'running', 'paused', 'stopping'],
  delete: VmState.options,
  exec: ['running'],
  attach: ['created', 'stopped', 'crashed', 'failed'],
};

/** Every legal transition; the one function that writes a state refuses all others. */
export const VM_TRANSITIONS: Record<VmState, readonly VmState[]> = {
  created: ['starting'],
  starting: ['running', 'failed', 'stopped', 'crashed'],
  running: ['paused', 'stopping', 'stopped', 'crashed', 'suspended'],
  paused: ['running', 'stopping', 'stopped', 'crashed', 'suspended'],
  suspended: ['starting'],
  stopping: ['stopped', 'crashed', 'failed'],
  stopped: ['starting'],
  crashed: ['starting'],
  failed: ['starting'],
};

/** States in which a VMM process may exist. */
export const VM_LIVE: readonly VmState[] = ['starting', 'running', 'paused', 'stopping'];

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

export const Vm = z.strictObject({
  id: id('vm'),
  name: Name,
  state: VmState,
  guest: GuestState.nullable(),
  vcpus: z.int().min(1),
  memory_mib: z.int().min(1),
  image_id: z.string().nullable(),
  kernel_id: z.string().nullable().describe('null: the newest kernel at the time of a start'),
  root_ws_id: z.string().nullable(),
  vmm: z.enum(['qemu', 'firecracker']).nullable().describe('the VMM of the last start'),
  accel: Accel.nullable(),
  pid: z.int().nullable(),
  guest_facts: GuestFacts.nullable(),
  error: VmError.nullable().describe('why the last start failed'),
  last_exit: LastExit.nullable(),
  created_at_ms: TimeMs,
  started_at_ms: TimeMs.nullable(),
  stopped_at_ms: TimeMs.nullable(),
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

export const VmLogMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('line'), line: z.string().describe('control characters stripped') }),
  z.strictObject({ type: z.literal('gap'), detail: z.string().describe('what was lost and when') }),
  z.strictObject({ type: z.literal('end') }),
]);
export type VmLogMessage = z.infer<typeof VmLogMessage>;

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
      vcpus: z.int().min(1).max(32).default(2),
      memory_mib: z
        .int()
        .min(64)
        .max(1024 * 1024)
        .default(1024),
      root_size_bytes: Bytes.min(16 * 1024 * 1024)
        .max(64 * 1024 ** 4)
        .default(8 * 1024 ** 3)
        .describe('size of the root workspace; it is sparse'),
      kernel: Ref.optional().describe('ID or version; default: the newest kernel at each start'),
      ws: Ref.optional().describe('an existing workspace as root disk instead of a new one'),
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
    input: z.strictObject({ state: VmState.optional() }),
    output: z.array(Vm),
    columns: ['id', 'name', 'state', 'guest', 'vcpus', 'memory_mib', 'vmm', 'pid'],
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
  'vm.logs': op({
    method: 'GET',
    path: '/v1/vms/:vm/logs',
    summary: 'Show the console of a VM',
    input: z.strictObject({
      vm: Ref,
      follow: z.boolean().default(false).describe('go on until the VM has stopped'),
      tail: z.int().min(0).max(100_000).default(200).describe('how many past lines'),
    }),
    output: VmLogMessage,
    errors: ['not_found'],
    args: ['vm'],
    stream: 'sse',
  }),
};
