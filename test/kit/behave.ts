/** A daemon whose stand-in VMM can be told, before each start, how to behave: see the headers of test/standin/qemu.ts and firecracker.ts. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { after } from 'node:test';
import { Fault, type FaultCode } from '../../src/api/fault.ts';
import type { Vm, VmmKind } from '../../src/api/vm.ts';
import type { VmState } from '../../src/api/vm_state.ts';
import { type ExecResult, execResult } from '../../src/client/exec.ts';
import { poll } from '../../src/lib/deadline.ts';
import { procStat, signalProc } from '../../src/lib/proc.ts';
import { vmOf } from '../../src/vmm/find.ts';
import { findKeepers } from '../../src/vmm/keeper.ts';
import { audit } from './audit.ts';
import { type World, type WorldOptions, world } from './world.ts';

/** A world with an image and a kernel, and what most tests do in it. */
export interface Stage extends AsyncDisposable {
  readonly w: World;
  create(name: string): Promise<Vm>;
  /** A command in the guest of a VM. */
  sh(vm: string, script: string): Promise<ExecResult>;
  /** A word that the guest of a VM says, for one that can be spoken to. */
  echo(vm: string): Promise<string>;
  /** The states of a VM, the first one first. */
  ways(vm: string): Promise<VmState[]>;
  /** Stand-ins behave again, every VM goes, and nothing stays. */
  clear(): Promise<void>;
  /** Variables of the stand-in, without their prefix, for every VMM that is started from now on, or for that of one VM. */
  behave(vars?: Record<string, string | number>, vm_id?: string): Promise<void>;
}

/** The stand-in of a test file that names none; a file may run the tests of another one on the other stand-in. */
const standin = (): VmmKind => (process.env.NEXUS_TEST_STANDIN === 'firecracker' ? 'firecracker' : 'qemu');

export const stage = async (vmm: VmmKind = standin(), options: WorldOptions = {}): Promise<Stage> => {
  const w = await world({ [vmm]: 'standin', seed: 'booted', ...options });
  const exec = (vm: string, argv: string[]) => execResult(w.client.exec.run({ vm, argv }));
  return {
    w,
    behave: w.behave,
    create: name => w.client.vm.create({ name, memory_mib: 64 }),
    sh: (vm, script) => exec(vm, ['/bin/sh', '-c', script]),
    echo: async vm => (await exec(vm, ['echo', 'here'])).stdout.toString(),
    ways: async vm => (await w.client.vm.history({ vm })).map(h => h.to).reverse(),
    clear: async () => {
      await w.behave();
      for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
      assert.deepEqual(await w.client.ws.list({}), []);
      await nothingLeft(w);
    },
    [Symbol.asyncDispose]: () => w[Symbol.asyncDispose](),
  };
};

/** One for all tests of a file, or of a `describe`; it ends after the last of them. */
export const staged = async (vmm?: VmmKind, options?: WorldOptions): Promise<Stage> => {
  const s = await stage(vmm, options);
  after(() => s[Symbol.asyncDispose]());
  return s;
};

/** As `staged`, with a VM `box` that runs; no VM stays. */
export const boxed = async (): Promise<Stage> => {
  const s = await stage();
  after(async () => {
    await s.clear();
    await s[Symbol.asyncDispose]();
  });
  const { id } = await s.create('box');
  await s.w.client.vm.start({ vm: id });
  return s;
};

/** The fault of that code; its message and hint fit on a line. */
export const rejects = async (promise: Promise<unknown>, code: FaultCode, message?: RegExp): Promise<Fault> => {
  const error = await promise.then(
    value => assert.fail(`no fault, but ${JSON.stringify(value)}`),
    (e: unknown) => e,
  );
  assert.ok(error instanceof Fault, String(error));
  assert.equal(error.code, code, error.message);
  if (message !== undefined) assert.match(error.message, message);
  assert.ok(!/[\n\u001b]/.test(error.message), 'one clean sentence');
  return error;
};

/** Waits until the VM is in that state. */
export const until = (w: World, vm: string, state: VmState, ms = 10_000): Promise<Vm> =>
  poll(`VM ${vm} to be ${state}`, ms, async () => {
    const now = await w.client.vm.get({ vm });
    return now.state === state ? now : undefined;
  });

/** Those that keep what the VMMs of these VMs say last. */
const keepers = async (w: World, ids: readonly string[]) =>
  (await findKeepers(join(w.data_dir, 'vms'))).filter(({ vm_id }) => ids.includes(vm_id));

/** Its FIFO alone would tell too early: the daemon opens it for the keeper. */
export const isKept = async (w: World, id: string): Promise<boolean> => (await keepers(w, [id])).length > 0;

/** Waits until it is: a keeper comes a moment after the start. */
export const kept = (w: World, id: string): Promise<boolean> =>
  poll(`the keeper of ${id}`, 20_000, async () => (await isKept(w, id)) || undefined);

/** As somebody may do who is not the daemon. */
export const endKeepers = async (w: World, ids: readonly string[]): Promise<void> => {
  for (const { proc } of await keepers(w, ids)) await signalProc(proc, 'SIGKILL');
  await poll('the end of keepers', 10_000, async () => (await keepers(w, ids)).length === 0 || undefined);
};

/** The VMMs that live, by the ID of their VM. A child of one that is about to become another program is none. */
export const vmmsByVm = async (w: World): Promise<Map<string, number[]>> => {
  const found = new Map<string, number[]>();
  const pids = await w.vmms();
  for (const pid of pids) {
    const args = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    const id = vmOf(args)?.vm_id;
    const parent = (await procStat(pid))?.ppid;
    if (id !== undefined && parent !== undefined && !pids.includes(parent))
      found.set(id, [...(found.get(id) ?? []), pid]);
  }
  return found;
};

/** The VMM of a VM, ended by SIGKILL from outside. */
export const killVmm = async (w: World, id: string): Promise<boolean> => {
  const pids = (await vmmsByVm(w)).get(id) ?? [];
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // it has ended
    }
  }
  return pids.length > 0;
};

/** Polled: what a dying VMM of ours forked a moment ago takes its time to die, too. */
export const noVmm = async (w: World): Promise<void> => {
  await poll('the end of every VMM', 3000, async () => (await w.vmms()).length === 0 || undefined);
};

/** Nothing is left of any VM. */
export const nothingLeft = async (w: World): Promise<void> => {
  assert.deepEqual(await w.client.vm.list({}), []);
  assert.deepEqual(await audit(w), []);
};

/** Runs as long as the agent: what the stand-in's guest runs is a process of this host. */
export const WHILE_PARENT = ['sh', '-c', 'while kill -0 $PPID 2>/dev/null; do sleep 0.1; done'];
