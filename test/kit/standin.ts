/**
 * The stand-in VMMs, each one file in a folder of its own: bundled, for a VMM has to start quickly, and open to all, for its own user
 * has to run it and a checkout in somebody's home may be closed to others.
 */
import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import process from 'node:process';
import type { VmmKind } from '../../src/api/vm.ts';
import { instanceId } from '../../src/vmm/find.ts';
import type { AgentBinaries } from './agent.ts';
import { cached } from './cache.ts';

const SOURCE = join(import.meta.dirname, '../standin');
const FIXTURES = join(import.meta.dirname, '../fixtures');
const SCHEMA = 'schema.mjs';

export interface Standin extends AsyncDisposable {
  /** The program, called as the VMM is. */
  readonly program: string;
  /** Says how every one that is started from now on behaves, or that of one VM: variables of the stand-in, without their prefix. */
  behave(vars?: Record<string, string | number>, vm_id?: string): Promise<void>;
  /** A copy of `file` beside it, open to all. */
  share(file: string, name: string): Promise<string>;
}

/** A folder for NEXUS_AGENT_DIR: the agent as it is, and a probe that says that KVM runs guests here. */
export const agentDirWithKvm = async (standin: Standin, agent: AgentBinaries): Promise<string> => {
  const dir = join(dirname(standin.program), 'agent');
  await mkdir(dir);
  for (const path of [agent.agent_x86_64, agent.agent_aarch64]) await symlink(path, join(dir, basename(path)));
  await copyFile(join(SOURCE, 'nexus-probe-kvm'), join(dir, 'nexus-probe'));
  return dir;
};

const PREFIX = { firecracker: 'FC_STANDIN_', qemu: 'QEMU_STANDIN_' } as const;
export const standinPrefix = (kind: VmmKind): string => PREFIX[kind];

/** Built once for each state of its sources. */
const built = async (kind: VmmKind): Promise<string> => {
  const hash = createHash('sha256').update(process.version);
  for (const dir of [SOURCE, FIXTURES])
    for (const name of (await readdir(dir)).filter(n => /\.(ts|yaml)$/.test(n)).sort())
      hash.update(name).update(await readFile(join(dir, name)));
  const { dir } = await cached('standin', `${kind}-${hash.digest('hex').slice(0, 16)}`, async dir => {
    const { build } = await import('esbuild');
    await build({
      entryPoints: [join(SOURCE, `${kind}.ts`)],
      outfile: join(dir, `${kind}.mjs`),
      bundle: true,
      format: 'esm',
      platform: 'node',
      logLevel: 'silent',
    });
    if (kind === 'firecracker') {
      const { schemaModule } = await import('../standin/firecracker_schema.ts');
      await writeFile(join(dir, SCHEMA), await schemaModule());
    }
    return {};
  });
  return dir;
};

export interface StandinOptions {
  /** `agent-harness`, for a guest that is the real agent's code. */
  harness?: string;
}

export const openStandin = async (kind: VmmKind, options: StandinOptions = {}): Promise<Standin> => {
  const from = await built(kind);
  const dir = await mkdtemp(join(tmpdir(), 'nxs-'));
  await chmod(dir, 0o755);
  const share = async (file: string, name: string): Promise<string> => {
    const copy = join(dir, name);
    await copyFile(file, copy);
    await chmod(copy, 0o755);
    return copy;
  };
  const script = await share(join(from, `${kind}.mjs`), `${kind}.mjs`);
  if (kind === 'firecracker') await share(join(from, SCHEMA), SCHEMA);
  const always = options.harness === undefined ? {} : { HARNESS: await share(options.harness, 'agent-harness') };
  const manner = join(dir, 'manner');
  const behave = (vars: Record<string, string | number> = {}, vm_id?: string) =>
    writeFile(
      vm_id === undefined ? manner : `${manner}-${kind === 'firecracker' ? instanceId(vm_id) : vm_id}`,
      Object.entries({ ...always, ...vars })
        .map(([name, value]) => `export ${PREFIX[kind]}${name}='${value}'\n`)
        .join(''),
      { mode: 0o644 },
    );
  await behave();
  const program = join(dir, `${kind}-standin`);
  const own = `for one; do [ ! -e "${manner}-$one" ] || . "${manner}-$one"; done`; // the VM's ID is one of the arguments
  const text = `#!/bin/sh\n. ${manner}\n${own}\nexec ${process.execPath} ${script} "$@"\n`;
  await writeFile(program, text, { mode: 0o755 });
  return { program, behave, share, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
};
