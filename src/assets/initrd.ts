/** The initramfs of a VM: the kernel's modules, if it has any, and the guest agent, cpio archives one after the other (docs/guest-protocol.md). */
import { randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, readFile, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Fault } from '../api/fault.ts';
import { publish } from '../lib/files.ts';
import { cpio } from './cpio.ts';

const MAX_AGENT = 128 * 1024 * 1024;

/** The archive of the agent: /init, the folders it mounts on, and the console that the kernel opens for it. */
export const agentCpio = async (agentPath: string): Promise<Buffer> => {
  const size = await stat(agentPath).then(
    s => s.size,
    (error: Error) => {
      throw new Fault('host', `Cannot read the guest agent: ${error.message}.`, { cause: error });
    },
  );
  if (size === 0 || size > MAX_AGENT) throw new Fault('host', `Cannot use the guest agent: it is ${size} bytes long.`);
  const data = await readFile(agentPath);
  const dir = (path: string, mode = 0o755) => ({ path, type: 'dir', mode }) as const;
  return cpio([
    dir('dev'),
    { path: 'dev/console', type: 'char', mode: 0o600, rdev: [5, 1] },
    { path: 'init', type: 'file', mode: 0o755, data },
    dir('newroot'),
    dir('proc', 0o555),
    dir('run'),
    dir('sys', 0o555),
  ]);
};

export interface InitrdInput {
  /** The kernel's archive of modules; null: it has none. */
  modules: string | null;
  /** The agent's binary. */
  agent: string;
  out: string;
  signal: AbortSignal;
}

/** Writes the initramfs to `out`, whole or not at all. */
export const writeInitrd = async ({ modules, agent, out, signal }: InitrdInput): Promise<void> => {
  const temp = join(dirname(out), `.${basename(out)}.${randomUUID()}.tmp`);
  const file = await open(temp, 'wx', 0o644);
  try {
    let at = 0;
    const chunks = modules === null ? [] : createReadStream(modules, { highWaterMark: 1024 * 1024, signal });
    for await (const chunk of chunks) {
      await file.writeFile(chunk);
      at += chunk.length;
    }
    await file.writeFile(Buffer.alloc((4 - (at % 4)) % 4));
    await file.writeFile(await agentCpio(agent));
    await file.sync();
    signal.throwIfAborted();
    await publish(temp, out);
  } catch (error) {
    await rm(temp, { force: true });
    throw error;
  } finally {
    await file.close();
  }
};
