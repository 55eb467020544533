/** The guest agent's programs, built once for each state of its sources and kept under `.cache/agent/`. */
import { createHash } from 'node:crypto';
import { appendFile, copyFile, readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ensureDir, exists, removeTree, sha256File } from '../../src/lib/files.ts';
import { run } from '../../src/lib/proc.ts';

export interface AgentBinaries {
  agent_x86_64: string;
  agent_aarch64: string;
  probe: string;
  harness: string;
}

const REPO = join(import.meta.dirname, '..', '..');
const SOURCES = join(REPO, 'agent');
/** What was made elsewhere and brought along, where it cannot be made: in the lab (kit/lab.ts). */
export const FIXTURES = process.env.NEXUS_TEST_FIXTURES;
const CACHE = join(REPO, '.cache', 'agent');
const DAY_MS = 24 * 3600 * 1000;

const hashSources = async (): Promise<string> => {
  const hash = createHash('sha256');
  hash.update((await run([process.env.GO ?? 'go', 'version'])).stdout);
  const names = await readdir(SOURCES, { recursive: true, withFileTypes: true });
  const paths = names.filter(n => n.isFile() && /\.(go|mod|sum|sh)$/.test(n.name) && !n.name.endsWith('_test.go'));
  for (const path of paths.map(n => join(n.parentPath, n.name)).sort()) {
    const data = await readFile(path);
    hash.update(`${path.slice(SOURCES.length)} ${data.length}\n`).update(data);
  }
  return hash.digest('hex').slice(0, 24);
};

const forgetOld = async (keep: string): Promise<void> => {
  for (const name of await readdir(CACHE)) {
    const path = join(CACHE, name);
    const info = await stat(path).catch(() => undefined);
    if (name !== keep && info?.isDirectory() && Date.now() - info.mtimeMs > DAY_MS) await removeTree(CACHE, path);
  }
};

/** Builds what is missing; test files that run at the same time wait for each other (flock ends with its process). */
export const agentBinaries = async (): Promise<AgentBinaries> => {
  if (FIXTURES !== undefined) return inFolder(join(FIXTURES, 'agent'));
  const key = await hashSources();
  const dir = join(await ensureDir(CACHE), key);
  if (!(await exists(dir))) {
    const script = '[ -d "$2" ] || { sh "$1" "$2.new" && mv "$2.new" "$2"; }';
    const argv = ['flock', join(CACHE, 'lock'), 'sh', '-c', script, 'build', join(SOURCES, 'build.sh'), dir];
    await run(argv, { timeout_ms: 600_000 });
    await forgetOld(key);
  }
  return inFolder(dir);
};

/** An agent like ours, with another hash, in `dir`. */
export const anotherAgent = async (dir: string): Promise<{ path: string; sha256: string }> => {
  const path = join(dir, 'another-agent');
  await copyFile((await agentBinaries()).agent_x86_64, path);
  await appendFile(path, 'another');
  return { path, sha256: await sha256File(path) };
};

const inFolder = (dir: string): AgentBinaries => ({
  agent_x86_64: join(dir, 'nexus-agent-x86_64'),
  agent_aarch64: join(dir, 'nexus-agent-aarch64'),
  probe: join(dir, 'nexus-probe'),
  harness: join(dir, 'agent-harness'),
});
