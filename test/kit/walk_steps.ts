/** What a client of a random walk may do: with a VM and a disk of its own, by a model; with some that all share, as it comes. */
import assert from 'node:assert/strict';
import process from 'node:process';
import { Fault, type FaultCode } from '../../src/api/fault.ts';
import { VM_LIVE, VM_VERBS, type VmState, type VmVerb } from '../../src/api/vm_state.ts';
import { execResult } from '../../src/client/exec.ts';
import { Unreachable } from '../../src/client/transport.ts';
import { killVmm, until } from './behave.ts';
import type { World } from './world.ts';

const MIB = 1024 * 1024;
const SIZES = { memory_mib: 64, root_size_bytes: 128 * MIB };
const SHARED = ['ann', 'bob', 'eve'];
const SHARED_DISKS = ['d0', 'd1'];
/** What a client knows of what is its own. */
export interface Own {
  readonly vm: string;
  readonly disk: string;
  state: VmState | 'absent';
  attached: 'absent' | 'free' | 'attached';
}

export interface Client {
  readonly w: World;
  readonly own: Own;
  readonly pick: <T>(from: readonly T[]) => T;
  /** Ends the daemon and starts another; only one client may. */
  readonly restart: (() => Promise<void>) | undefined;
}

export interface Step {
  readonly name: string;
  readonly weight: number;
  run(client: Client): Promise<unknown>;
}

/** What must come of it: its success, or that fault. */
const must = async (what: string, fault: FaultCode | undefined, call: () => Promise<unknown>): Promise<void> => {
  const error = await call().then(
    () => undefined,
    (e: unknown) => e,
  );
  if (error instanceof Unreachable) throw error;
  const code = error instanceof Fault ? error.code : error;
  assert.equal(code, fault, `${what}: ${error instanceof Error ? error.message : 'no fault came'}`);
};

/** A verb on the client's own VM, by the table. */
const verb =
  (name: VmVerb, to: VmState | 'absent' | undefined, call: (w: World, vm: string) => Promise<unknown>) =>
  async ({ w, own }: Client): Promise<void> => {
    const { state } = own;
    const fault = state === 'absent' ? 'not_found' : VM_VERBS[name].includes(state) ? undefined : 'bad_state';
    await must(`${name} of ${own.vm}, ${state}`, fault, () => call(w, own.vm));
    if (fault === undefined && to !== undefined) own.state = to;
    if (own.state === 'absent' && own.attached === 'attached') own.attached = 'free';
  };

const OWN: readonly Step[] = [
  {
    name: 'create',
    weight: 6,
    run: async ({ w, own }) => {
      const fault = own.state === 'absent' ? undefined : 'exists';
      await must(`create ${own.vm}`, fault, () => w.client.vm.create({ name: own.vm, ...SIZES }));
      if (fault === undefined) own.state = 'created';
    },
  },
  {
    name: 'start',
    weight: 10,
    run: verb('start', 'running', (w, vm) => w.client.vm.start({ vm, timeout_ms: 20_000 })),
  },
  { name: 'stop', weight: 3, run: verb('stop', 'stopped', (w, vm) => w.client.vm.stop({ vm, timeout_ms: 20_000 })) },
  { name: 'stop --force', weight: 2, run: verb('stop', 'stopped', (w, vm) => w.client.vm.stop({ vm, force: true })) },
  { name: 'restart', weight: 2, run: verb('restart', 'running', (w, vm) => w.client.vm.restart({ vm })) },
  { name: 'pause', weight: 4, run: verb('pause', 'paused', (w, vm) => w.client.vm.pause({ vm })) },
  { name: 'resume', weight: 4, run: verb('resume', 'running', (w, vm) => w.client.vm.resume({ vm })) },
  { name: 'delete', weight: 2, run: verb('delete', 'absent', (w, vm) => w.client.vm.delete({ vm })) },
  {
    name: 'exec',
    weight: 6,
    run: verb('exec', undefined, async (w, vm) => {
      const { exit_code } = await execResult(w.client.exec.run({ vm, argv: ['true'] }));
      assert.equal(exit_code, 0);
    }),
  },
  {
    name: 'update',
    weight: 2,
    run: async ({ w, own }) => {
      const fault = own.state === 'absent' ? 'not_found' : undefined;
      await must(`update ${own.vm}`, fault, () => w.client.vm.update({ vm: own.vm, tags: { at: String(Date.now()) } }));
    },
  },
  {
    name: 'kill the VMM',
    weight: 2,
    run: async ({ w, own }) => {
      if (own.state === 'absent' || !VM_LIVE.includes(own.state)) return;
      assert.ok(await killVmm(w, (await w.client.vm.get({ vm: own.vm })).id), `${own.vm} is ${own.state} without VMM`);
      await until(w, own.vm, 'crashed');
      own.state = 'crashed';
    },
  },
  {
    name: 'SIGSTOP',
    weight: 1,
    run: async ({ w, own }) => {
      if (own.state !== 'running') return;
      process.kill((await w.client.vm.get({ vm: own.vm })).pid ?? 0, 'SIGSTOP');
      await until(w, own.vm, 'paused', 15_000);
      own.state = 'paused';
    },
  },
  {
    name: 'make the disk',
    weight: 2,
    run: async ({ w, own }) => {
      const fault = own.attached === 'absent' ? undefined : 'exists';
      await must(`make ${own.disk}`, fault, () => w.client.ws.create({ name: own.disk, size_bytes: 16 * MIB }));
      if (fault === undefined) own.attached = 'free';
    },
  },
  {
    name: 'attach',
    weight: 3,
    run: async ({ w, own }) => {
      const { state, attached } = own;
      const wrong = state !== 'absent' && !VM_VERBS.attach.includes(state) ? 'bad_state' : undefined;
      const missing = attached === 'absent' || state === 'absent' ? 'not_found' : undefined;
      const fault = missing ?? wrong ?? (attached === 'attached' ? 'in_use' : undefined);
      await must(`attach ${own.disk}`, fault, () => w.client.ws.attach({ ws: own.disk, vm: own.vm }));
      if (fault === undefined) own.attached = 'attached';
    },
  },
  {
    name: 'detach',
    weight: 2,
    run: async ({ w, own }) => {
      const { state, attached } = own;
      const wrong = attached === 'free' || (state !== 'absent' && !VM_VERBS.attach.includes(state));
      const fault = attached === 'absent' ? 'not_found' : wrong ? 'bad_state' : undefined;
      await must(`detach ${own.disk}`, fault, () => w.client.ws.detach({ ws: own.disk }));
      if (fault === undefined) own.attached = 'free';
    },
  },
  {
    name: 'remove the disk',
    weight: 1,
    run: async ({ w, own }) => {
      const fault = { absent: 'not_found', free: undefined, attached: 'in_use' } as const;
      await must(`remove ${own.disk}`, fault[own.attached], () => w.client.ws.remove({ ws: own.disk }));
      if (own.attached === 'free') own.attached = 'absent';
    },
  },
];

/** That another client was faster; `vmm` and `timeout`: its VMM was killed or stopped meanwhile. */
const RACES: readonly FaultCode[] = [
  'not_found',
  'exists',
  'bad_state',
  'in_use',
  'busy',
  'canceled',
  'vmm',
  'timeout',
];

const race =
  (call: (w: World, pick: Client['pick']) => Promise<unknown>, ...more: FaultCode[]) =>
  async ({ w, pick }: Client): Promise<void> => {
    try {
      await call(w, pick);
    } catch (error) {
      if (!(error instanceof Fault) || ![...RACES, ...more].includes(error.code)) throw error;
    }
  };

const one = (pick: Client['pick']) => pick(SHARED);

const COMMON: readonly Step[] = [
  { name: 'create', weight: 5, run: race((w, pick) => w.client.vm.create({ name: one(pick), ...SIZES })) },
  { name: 'create --ws', weight: 1, run: race((w, p) => w.client.vm.create({ name: one(p), ws: p(SHARED_DISKS) })) },
  { name: 'start', weight: 8, run: race((w, p) => w.client.vm.start({ vm: one(p), timeout_ms: 5000 })) },
  { name: 'start --wait none', weight: 2, run: race((w, p) => w.client.vm.start({ vm: one(p), wait: 'none' })) },
  { name: 'stop', weight: 2, run: race((w, p) => w.client.vm.stop({ vm: one(p), timeout_ms: 2000 })) },
  { name: 'stop --force', weight: 2, run: race((w, p) => w.client.vm.stop({ vm: one(p), force: true })) },
  { name: 'restart', weight: 2, run: race((w, p) => w.client.vm.restart({ vm: one(p), timeout_ms: 5000 })) },
  { name: 'pause', weight: 2, run: race((w, p) => w.client.vm.pause({ vm: one(p) })) },
  { name: 'resume', weight: 4, run: race((w, p) => w.client.vm.resume({ vm: one(p) })) },
  { name: 'wait', weight: 1, run: race((w, p) => w.client.vm.wait({ vm: one(p), timeout_ms: 200 })) },
  { name: 'delete', weight: 1, run: race((w, p) => w.client.vm.delete({ vm: one(p) })) },
  { name: 'update', weight: 1, run: race((w, p) => w.client.vm.update({ vm: one(p), tags: { a: '1' } })) },
  {
    name: 'exec',
    weight: 4,
    run: race((w, p) => execResult(w.client.exec.run({ vm: one(p), argv: ['true'] })), 'guest'),
  },
  {
    name: 'kill the VMM',
    weight: 2,
    run: race(async (w, p) => killVmm(w, (await w.client.vm.get({ vm: one(p) })).id)),
  },
  {
    name: 'SIGSTOP',
    weight: 1,
    run: race(async (w, p) => {
      const { pid } = await w.client.vm.get({ vm: one(p) });
      if (pid !== null && (await w.vmms()).includes(pid)) process.kill(pid, 'SIGSTOP');
    }),
  },
  {
    name: 'make a disk',
    weight: 1,
    run: race((w, p) => w.client.ws.create({ name: p(SHARED_DISKS), size_bytes: 16 * MIB })),
  },
  { name: 'attach', weight: 2, run: race((w, p) => w.client.ws.attach({ ws: p(SHARED_DISKS), vm: one(p) })) },
  { name: 'detach', weight: 2, run: race((w, p) => w.client.ws.detach({ ws: p(SHARED_DISKS) })) },
  { name: 'remove a disk', weight: 1, run: race((w, p) => w.client.ws.remove({ ws: p(SHARED_DISKS) })) },
];

const KILL: Step = { name: 'kill the daemon', weight: 3, run: async ({ restart }) => restart?.() };

/** All steps, each as often as it weighs. */
export const STEPS: readonly Step[] = [...OWN, ...COMMON, KILL].flatMap(step => Array<Step>(step.weight).fill(step));
