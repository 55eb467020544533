/** A driver on its stand-in, in a temporary directory that goes with it, and nothing it started outlives it. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { Fault } from '../../src/api/fault.ts';
import type { VmmKind } from '../../src/api/vm.ts';
import { poll } from '../../src/lib/deadline.ts';
import { silentLog } from '../../src/lib/log.ts';
import { signalProc } from '../../src/lib/proc.ts';
import type { DriverOptions } from '../../src/vmm/driver.ts';
import { openFirecracker } from '../../src/vmm/firecracker.ts';
import { gatherHostFacts } from '../../src/vmm/host_facts.ts';
import type { Machine, MachineSpec, Vmm } from '../../src/vmm/machine.ts';
import { openQemu } from '../../src/vmm/qemu.ts';
import { openStandin } from '../kit/standin.ts';

export const ID = 'vm_01standin';
/** Accelerator of each stand-in. */
export const ACCEL = { firecracker: 'kvm', qemu: 'tcg' } as const;
const OPEN = { firecracker: openFirecracker, qemu: openQemu } as const;
const PROBE = { firecracker: 'nexus-probe-kvm', qemu: 'nexus-probe' } as const;

export const openDriver = async (
  kind: VmmKind,
  program: string,
  options: Partial<DriverOptions> = {},
): Promise<Vmm> => {
  const host = await gatherHostFacts(join(import.meta.dirname, PROBE[kind]), silentLog());
  return OPEN[kind]({ host: () => host, program, log: silentLog(), ...options });
};

export interface Bench extends AsyncDisposable {
  vmm: Vmm;
  program: string;
  root: string;
  spec: MachineSpec;
  /** Starts the machine of `spec`. */
  start(change?: Partial<MachineSpec>): Promise<Machine>;
  /** Variables of the stand-in, for every one that is started from now on. */
  behave(vars: Record<string, string | number>): Promise<void>;
}

export const soon = (ms = 20_000): AbortSignal => AbortSignal.timeout(ms);

export interface BenchOptions extends Partial<DriverOptions> {
  program?: string;
  /** Name of the VM's run directory. */
  dir?: string;
}

/** `vars`: variables of the stand-in, without their prefix. */
export const bench = async (
  kind: VmmKind,
  vars: Record<string, string | number> = {},
  options: BenchOptions = {},
): Promise<Bench> => {
  const { program: other, dir = ID, ...rest } = options;
  const standin = await openStandin(kind);
  await standin.behave(vars);
  const program = other ?? standin.program;
  const vmm = await openDriver(kind, program, rest);
  const root = await mkdtemp(join(tmpdir(), 'nexus-vmm-'));
  const file = async (name: string) => {
    await writeFile(join(root, name), 'x'.repeat(4096), { mode: 0o644 });
    return join(root, name);
  };
  const spec: MachineSpec = {
    id: ID,
    dir: join(root, 'run', dir),
    vcpus: 1,
    memory_mib: 64,
    kernel: await file('kernel'),
    initrd: await file('initrd'),
    cmdline: ['nexus.root=/dev/vda'],
    disks: [{ id: 'ws_1', path: await file('disk'), read_only: false }],
    disk_rate_bytes: null,
    disk_rate_ops: null,
    vsock_cid: 3,
    uid: null,
  };
  const start = (change: Partial<MachineSpec> = {}) => vmm.start({ ...spec, ...change }, soon(), async () => {});
  const dispose = async () => {
    for (const { proc } of await vmm.find(join(root, 'run'))) await signalProc(proc, 'SIGKILL');
    await poll('the end of all stand-ins', 10_000, async () =>
      (await vmm.find(join(root, 'run'))).length === 0 ? true : undefined,
    );
    await rm(root, { recursive: true, force: true });
    await standin[Symbol.asyncDispose]();
  };
  return { vmm, program, root, spec, start, behave: standin.behave, [Symbol.asyncDispose]: dispose };
};

/** Writes a line and gives what comes back. */
export const echoed = async (stream: Duplex, line: string): Promise<string> => {
  stream.write(line);
  let got = '';
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    got += String(chunk);
    if (got.length >= line.length) break;
  }
  return got;
};

export const closed = (stream: Duplex): Promise<void> =>
  new Promise(resolve => {
    if (stream.destroyed) resolve();
    stream.once('close', () => resolve());
  });

/** Every new egress stream of a machine, in order. */
export const egressOf = (machine: Machine): { next(): Promise<Duplex> } => {
  const come: Duplex[] = [];
  machine.onEgress(stream => come.push(stream));
  return { next: () => poll('an egress stream', 10_000, () => come.shift()) };
};

export const nothingIn = async (vmm: Vmm, root: string): Promise<void> => {
  assert.deepEqual(await vmm.find(join(root, 'run')), [], 'a VMM is left');
};

export const sockets = async (dir: string): Promise<string[]> =>
  (await readdir(dir)).filter(name => name.includes('.sock'));

/** For `assert.rejects`. */
export const fault = (code: string, text: RegExp) => (error: unknown) => {
  assert.ok(error instanceof Fault, `not a fault: ${error}`);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, text);
  return true;
};
