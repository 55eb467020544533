/** The states of a VM: which verb is allowed in which, and what follows what. */
import { z } from 'zod';

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

export type VmVerb = 'start' | 'stop' | 'restart' | 'pause' | 'resume' | 'delete' | 'exec' | 'files' | 'attach';

/**
 * Which verb is allowed in which state. The daemon, the CLI and the console all read this table. `stop` is allowed besides where a
 * restart is waited for (`restart_at_ms`): it calls that off.
 */
export const VM_VERBS: Record<VmVerb, readonly VmState[]> = {
  start: ['created', 'stopped', 'crashed', 'failed'],
  stop: ['starting', 'running', 'paused', 'stopping'],
  restart: ['created', 'running', 'paused', 'stopped', 'crashed', 'failed'],
  pause: ['running'],
  resume: ['paused'],
  delete: VmState.options,
  exec: ['running'],
  files: ['running'],
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
  stopped: ['starting', 'stopped'], // the second: a restart that was waited for is called off
  crashed: ['starting', 'stopped'],
  failed: ['starting', 'stopped'],
};

/** States in which a VMM process may exist. */
export const VM_LIVE: readonly VmState[] = ['starting', 'running', 'paused', 'stopping'];
