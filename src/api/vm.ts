import { z } from 'zod';
import { id, Name, TimeMs } from './common.ts';
import { FAULT_CODES } from './fault.ts';
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

/** How it went with what a VM was given for its first boot. */
export const VmProvision = z.strictObject({
  state: z.enum(['pending', 'done', 'failed']),
  reason: z
    .enum(['file', 'exit', 'timeout', 'interrupted', 'guest'])
    .nullable()
    .describe(
      'why it failed. file: one could not be written; exit, timeout, interrupted: the script ended badly, took too long, or nobody can know how it ended; guest: it does not do as agreed',
    ),
  error: VmError.nullable(),
  output: z.array(z.string()).describe('the last lines of a script that failed, control characters stripped'),
  ended_at_ms: TimeMs.nullable(),
});
export type VmProvision = z.infer<typeof VmProvision>;

export const GuestFacts = z.strictObject({
  agent_version: z.string(),
  kernel: z.string(),
  os: z.string(),
  hostname: z.string(),
  init: z.string(),
  boot_id: z.string(),
  problems: z
    .array(z.string())
    .default([])
    .describe('what the guest lacks, a sentence each, such as a disk that could not be mounted'),
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
export const chosen = {
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
  ephemeral: z.boolean().describe('it is deleted when nobody holds it'),
  provision: VmProvision.nullable().describe('of files, environment and first-boot script; null: it was given none'),
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
  restart_at_ms: TimeMs.nullable().describe('when the daemon starts it again; until it runs'),
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
