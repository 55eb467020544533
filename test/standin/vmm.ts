/** A QEMU driver on the stand-in, in a temporary directory that goes with it, and nothing it started outlives it. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import type { Duplex } from 'node:stream';
import { poll } from '../../src/lib/deadline.ts';
import { silentLog } from '../../src/lib/log.ts';
import { signalProc } from '../../src/lib/proc.ts';
import { gatherHostFacts } from '../../src/vmm/host_facts.ts';
import type { Machine, MachineSpec, Vmm } from '../../src/vmm/machine.ts';
import { openQemu, type QemuOptions } from '../../src/vmm/qemu.ts';

export const STANDIN = join(import.meta.dirname, 'qemu.ts');
export const PROBE = join(import.meta.dirname, 'nexus-probe');
/** The stand-in is a program of Node's: the same one as ours. */
export const STANDIN_PATH = `${dirname(process.execPath)}${delimiter}${process.env.PATH}`;
export const ID = 'vm_01standin';

export interface Bench extends AsyncDisposable {
  vmm: Vmm;
  root: string;
  spec: MachineSpec;
  /** Starts the machine of `spec`. */
  start(change?: Partial<MachineSpec>): Promise<Machine>;
}

export const soon = (ms = 20_000): AbortSignal => AbortSignal.timeout(ms);

export const bench = async (
  env: Record<string, string> = {},
  options: Partial<QemuOptions> = {},
  dirName: string = ID,
): Promise<Bench> => {
  const vmm = await openQemu({
    host: await gatherHostFacts(PROBE, silentLog()),
    program: STANDIN,
    log: silentLog(),
    env: { PATH: STANDIN_PATH, ...Object.fromEntries(Object.entries(env).map(([k, v]) => [`QEMU_STANDIN_${k}`, v])) },
    ...options,
  });
  const root = await mkdtemp(join(tmpdir(), 'nexus-vmm-'));
  const file = async (name: string) => {
    await writeFile(join(root, name), 'x'.repeat(4096), { mode: 0o644 });
    return join(root, name);
  };
  const spec: MachineSpec = {
    id: ID,
    dir: join(root, 'run', dirName),
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
  };
  return { vmm, root, spec, start, [Symbol.asyncDispose]: dispose };
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
