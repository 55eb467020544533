/**
 * A daemon that can be told to die or to fail at any of its steps, in a world that is made in a moment: stand-ins for VMM, apt, mmdebstrap and
 * probe, an agent of a few bytes, and so a kernel, an archive and an image of a few kilobytes.
 */
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { arch, tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { JOB_ENDED } from '../../src/api/job.ts';
import type { VmmKind } from '../../src/api/vm.ts';
import { VM_LIVE } from '../../src/api/vm_state.ts';
import { exists } from '../../src/lib/files.ts';
import { audit } from './audit.ts';
import { type Stage, stage, vmmsByVm } from './behave.ts';
import { makePackages } from './packages.ts';
import { bundledMain } from './program.ts';
import { REPO, type World, type WorldOptions } from './world.ts';

export interface Ground extends Stage {
  /** What happens at which step, from now on: src/lib/step.ts. Nothing: all is well. */
  fault(text?: string): Promise<void>;
  /** What has not come about yet. */
  wish(): Promise<string>;
}

const SRC = join(REPO, 'src');

/** The names of all steps in src/, which are literals where they are called. */
export const stepNames = async (): Promise<string[]> => {
  const names = new Set<string>();
  for (const path of await readdir(SRC, { recursive: true })) {
    if (!path.endsWith('.ts')) continue;
    const text = await readFile(join(SRC, path), 'utf8');
    for (const [call, name] of text.matchAll(/[.#]step\(\s*(?:'([a-z.]+)'|\S)/g)) {
      if (name === undefined) throw new Error(`${path}: ${call} is no literal`);
      names.add(name);
    }
  }
  return [...names].sort();
};

const makeAgent = async (dir: string, vmm: VmmKind): Promise<void> => {
  await mkdir(dir, { mode: 0o755 });
  const agent = join(dir, `nexus-agent-${arch() === 'arm64' ? 'aarch64' : 'x86_64'}`);
  await writeFile(agent, '#!/bin/sh\necho 0.0.0\n', { mode: 0o755 });
  const probe = vmm === 'firecracker' ? 'nexus-probe-kvm' : 'nexus-probe';
  await copyFile(join(import.meta.dirname, '../standin', probe), join(dir, 'nexus-probe'));
  await chmod(join(dir, 'nexus-probe'), 0o755);
};

/** Makes it, empty: see `settle`. */
export const ground = async (
  vmm: VmmKind = 'qemu',
  { env: more, ...options }: Pick<WorldOptions, 'env' | 'parent'> = {},
): Promise<Ground> => {
  const dir = await mkdtemp(join(tmpdir(), 'nxg-'));
  const faults = join(dir, 'faults');
  const fault = (text = '') => writeFile(faults, text);
  try {
    await chmod(dir, 0o755);
    await fault();
    await makePackages(join(dir, 'bin'));
    await makeAgent(join(dir, 'agent'), vmm);
    const env = {
      NEXUS_FAULTS: faults,
      NEXUS_RESTART_MS: '2000:4000:60000',
      NEXUS_AGENT_DIR: join(dir, 'agent'),
      PATH: `${join(dir, 'bin')}:${process.env.PATH}`,
      ...more,
    };
    const s = await stage(vmm, { ...options, seed: 'empty', main: await bundledMain(), env });
    const dispose = async () => {
      await s[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    };
    const wish = () => readFile(faults, 'utf8');
    return { ...s, fault, wish, [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await rm(dir, { recursive: true, force: true });
    throw error;
  }
};

/** Where the API and this host disagree; each a line. A VM whose start is `hung` is no lie as long as it has a VMM. */
const lies = async (w: World, hung: readonly string[]): Promise<string[]> => {
  const [vms, all, images, builds, running, vmms] = await Promise.all([
    w.client.vm.list({}),
    w.client.ws.list({}),
    w.client.image.list({}),
    w.client.build.list({ limit: 1000 }),
    w.client.job.list({ limit: 1000 }),
    vmmsByVm(w),
  ]);
  const found: string[] = [];
  for (const { id, name, state, pid, guest, root_ws_id } of vms) {
    const pids = vmms.get(id) ?? [];
    const told = `${name} is ${state} with process ${pid}, guest ${guest}; its VMMs: ${pids.join(' ') || 'none'}`;
    const lives = VM_LIVE.includes(state);
    if (
      (state === 'starting' && !hung.includes(id)) ||
      (lives ? pids.length !== 1 || pids[0] !== pid : pids.length > 0)
    )
      found.push(told);
    else if (!lives && (pid !== null || guest !== null)) found.push(told);
    if (root_ws_id !== null && !all.some(ws => ws.id === root_ws_id && ws.vm_id === id))
      found.push(`${name}: its root`);
  }
  for (const [id, pids] of vmms) if (!vms.some(vm => vm.id === id)) found.push(`${id} is unknown and has ${pids}`);
  for (const { id, state, job_id } of builds)
    if (state === 'building' && !running.some(job => job.id === job_id && !JOB_ENDED.includes(job.state)))
      found.push(`${id} is building, its job is not at work`);
  for (const [dir, records] of [['workspaces', all] as const, ['images', images] as const]) {
    for (const { id } of records)
      if (!(await exists(join(w.data_dir, dir, id, 'disk.raw')))) found.push(`${id}: no disk`);
  }
  return found;
};

/** A start of a VMM that somebody stopped takes as long as it may. */
const REST_MS = 30_000;

/** Waits for what is under way; then the API tells the truth, and nothing is there that no record accounts for. `hung`: IDs of VMs that may still start. */
export const truthful = async (w: World, hung: readonly string[] = []): Promise<string[]> => {
  const end = performance.now() + REST_MS;
  for (;;) {
    const found = await lies(w, hung);
    if (found.length === 0) return audit(w);
    if (performance.now() > end) return found;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
};
