/** The operations on VMs, and the record that a new one begins with. */
import { z } from 'zod';
import { Bytes, Name, Ref, TimeoutMs } from './common.ts';
import { Nothing, op } from './op.ts';
import { given } from './provision.ts';
import { chosen, Vm, VmHistoryEntry } from './vm.ts';
import { VmState } from './vm_state.ts';

const VmRef = z.strictObject({ vm: Ref });
const StartWait = z
  .enum(['ready', 'running', 'none'])
  .default('ready')
  .describe(
    'ready: until the guest agent has answered, and all is done that the VM was given; running: until the VMM runs; none: return at once',
  );
const StopTimeout = TimeoutMs.default(30_000).describe('how long the guest gets before it is ended by force');

/** What a start answers. */
const StartedVm = z.strictObject({
  ...Vm.shape,
  notice: z.string().optional().describe('what is worth knowing of this host, for people; said once'),
});

const VmHoldMessage = z
  .strictObject({ type: z.literal('held') })
  .describe('from now on, as long as the stream is open');

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
        .optional()
        .describe("size of the root workspace, which is sparse; default: 8 GiB, or the image's own where that is more"),
      kernel: Ref.optional().describe('ID or version; default: the newest kernel at each start'),
      ws: Ref.optional().describe('an existing workspace as root disk instead of a new one'),
      restart: chosen.restart.default('never'),
      auto_start: chosen.auto_start.default(false),
      start_order: chosen.start_order.default(0),
      disk_rate_bytes: chosen.disk_rate_bytes.default(null),
      disk_rate_ops: chosen.disk_rate_ops.default(null),
      vmm: chosen.vmm.default(null),
      tags: chosen.tags.default({}),
      ...given,
      ephemeral: z
        .boolean()
        .default(false)
        .describe('delete it when nobody holds it (vm.hold), the first time 15 s after it was made'),
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
      wait: StartWait,
      timeout_ms: TimeoutMs.default(60_000).describe(
        'how long to wait for the guest; what it was given has limits of its own',
      ),
    }),
    output: StartedVm,
    errors: ['not_found', 'bad_state', 'busy', 'in_use', 'host', 'vmm', 'guest', 'timeout', 'no_room', 'canceled'],
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
  'vm.restart': op({
    method: 'POST',
    path: '/v1/vms/:vm/restart',
    summary: 'Stop a VM and start it again; one that does not run is just started',
    input: z.strictObject({
      vm: Ref,
      force: z.boolean().default(false).describe('end the VMM at once, as if power was cut'),
      wait: StartWait,
      timeout_ms: TimeoutMs.default(60_000).describe('how long the guest gets to shut down, and again to come back'),
    }),
    output: StartedVm,
    errors: ['not_found', 'bad_state', 'busy', 'in_use', 'host', 'vmm', 'guest', 'timeout', 'no_room', 'canceled'],
    args: ['vm'],
    tool: true,
  }),
  'vm.pause': op({
    method: 'POST',
    path: '/v1/vms/:vm/pause',
    summary: 'Pause a VM: its processors stand still, its memory stays',
    input: VmRef,
    output: Vm,
    errors: ['not_found', 'bad_state', 'busy', 'vmm', 'no_room', 'canceled'],
    args: ['vm'],
    tool: true,
  }),
  'vm.resume': op({
    method: 'POST',
    path: '/v1/vms/:vm/resume',
    summary: 'Let a paused VM go on',
    input: VmRef,
    output: Vm,
    errors: ['not_found', 'bad_state', 'busy', 'vmm', 'no_room', 'canceled'],
    args: ['vm'],
    tool: true,
  }),
  'vm.wait': op({
    method: 'GET',
    path: '/v1/vms/:vm/wait',
    summary: 'Wait until a VM is ready, runs, is paused or has ended',
    input: z.strictObject({
      vm: Ref,
      for: z
        .enum(['ready', 'running', 'paused', 'ended'])
        .default('ready')
        .describe(
          'ready: the guest agent has answered, and all is done that the VM was given; ended: no VMM runs, and no restart is waited for',
        ),
      timeout_ms: TimeoutMs.default(60_000),
    }),
    output: Vm,
    errors: ['not_found', 'bad_state', 'vmm', 'guest', 'timeout', 'canceled'],
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
  'vm.hold': op({
    method: 'POST',
    path: '/v1/vms/:vm/hold',
    summary:
      'Hold an ephemeral VM: it is deleted when the last stream of this kind has ended, and these end when it is gone',
    input: VmRef,
    output: VmHoldMessage,
    errors: ['not_found', 'invalid'],
    args: ['vm'],
    stream: 'sse',
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
  ephemeral: input.ephemeral,
  provision: null,
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
