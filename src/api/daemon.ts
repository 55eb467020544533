import { z } from 'zod';
import { TimeMs } from './common.ts';
import { Nothing, op } from './op.ts';
import { Accel, VmmKind } from './vm.ts';

export const DaemonInfo = z.strictObject({
  version: z.string(),
  pid: z.int(),
  data_dir: z.string(),
  started_at_ms: TimeMs,
  node: z.string(),
  vmm: z
    .strictObject({
      kind: VmmKind,
      program: z.string(),
      version: z.string().nullable(),
      accel: Accel.nullable().describe('null: no VM can run here'),
      why: z.string().describe('why this accelerator or none, one sentence'),
      hint: z.string().optional().describe('what would make it faster, or possible'),
    })
    .describe('the VMM of a VM that wants none in particular'),
  disk: z.strictObject({ backend: z.enum(['btrfs', 'reflink', 'copy']), why: z.string() }),
  vms: z.record(z.string(), z.int()).describe('VMs by state'),
});
export type DaemonInfo = z.infer<typeof DaemonInfo>;

/** One thing that was looked at. */
export const Check = z.strictObject({
  name: z.string(),
  level: z
    .enum(['ok', 'warn', 'fail'])
    .describe('fail: no VM can run without it; warn: something is slow, or cannot be done'),
  reason: z.string().optional().describe('one word for programs, such as no-device'),
  detail: z.string().describe('what is, one sentence without its period'),
  hint: z.string().optional().describe('what mends it: a command where there is one'),
});
export type Check = z.infer<typeof Check>;

export const DoctorReport = z.strictObject({
  able: z.boolean().describe('nothing failed: VMs can run here'),
  checks: z.array(Check),
});
export type DoctorReport = z.infer<typeof DoctorReport>;

export const daemonOps = {
  'daemon.get': op({
    method: 'GET',
    path: '/v1/daemon',
    summary: 'Show the daemon, the VMM it uses and why',
    input: z.strictObject({}),
    output: DaemonInfo,
    errors: ['host'],
    tool: true,
  }),
  'daemon.doctor': op({
    method: 'GET',
    path: '/v1/daemon/doctor',
    summary: 'Look at what this host can do, and what would mend what it cannot',
    input: z.strictObject({}),
    output: DoctorReport,
    tool: true,
  }),
  'daemon.ping': op({
    method: 'GET',
    path: '/v1/ping',
    summary: 'Answer at once',
    input: z.strictObject({}),
    output: Nothing,
  }),
};
