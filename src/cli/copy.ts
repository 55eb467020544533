/** What copies in both directions share. */
import { basename } from 'node:path';
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import type { FsEntry } from '../api/fs.ts';
import type { Nexus } from '../client/nexus.ts';
import { Unreachable } from '../client/transport.ts';
import { pause } from '../lib/deadline.ts';

/** What one copy is given. */
export interface Copy {
  nexus: Nexus;
  vm: string;
  /** Owners, set-uid, device nodes and extended attributes, too. */
  archive: boolean;
  signal: AbortSignal;
  /** Tells of bytes that were copied; `total` where it is known. */
  moved(bytes: number, total: number | null): void;
}

/** A copy of one file goes on after so many losses in a row, with these waits before them. */
const LOSSES = 10;
const WAIT_LEAST_MS = 200;
const WAIT_MOST_MS = 5000;

/** Worth another try: the daemon went away or stops, or its connection to the guest is lost. What the guest's kernel says is final. */
const passing = (error: unknown): boolean =>
  error instanceof Unreachable ||
  (error instanceof Fault &&
    ['guest', 'timeout', 'busy', 'canceled'].includes(error.code) &&
    error.reason === undefined);

/** Does `part` until it comes to its end. It goes on where it stood, and says how far it came by now. */
export const resumed = async (signal: AbortSignal, at: () => number, part: () => Promise<void>): Promise<void> => {
  for (let [losses, before] = [0, -1]; ; ) {
    try {
      return await part();
    } catch (error) {
      signal.throwIfAborted();
      losses = at() > before ? 1 : losses + 1;
      before = at();
      if (!passing(error) || losses > LOSSES) throw error;
      await pause(Math.min(WAIT_MOST_MS, WAIT_LEAST_MS * 2 ** (losses - 1)), signal);
    }
  }
};

/** The chunks, counted. */
export async function* counted(
  copy: Copy,
  chunks: AsyncIterable<Uint8Array>,
  total: number | null,
): AsyncGenerator<Buffer> {
  for await (const chunk of chunks) {
    copy.moved(chunk.length, total);
    yield Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  }
}

/** tar as nobody's environment changes it. */
export const tarEnv = (): NodeJS.ProcessEnv => ({ ...process.env, TAR_OPTIONS: undefined });

/** What is at a path of the VM; undefined if nothing is. */
export const look = async (copy: Copy, path: string, follow: boolean): Promise<FsEntry | undefined> => {
  const { nexus, vm, signal } = copy;
  return await nexus.fs.stat({ vm, path, follow }, { signal }).catch((error: unknown) => {
    if (error instanceof Fault && error.reason === 'ENOENT') return undefined;
    throw error;
  });
};

/** The last name of a path, which may end in slashes. */
export const nameIn = (path: string): string => basename(path.replace(/\/+$/, ''));
export const below = (dir: string, name: string): string => `${dir.replace(/\/+$/, '')}/${name}`;
/** `src/.` means what is in src, and not src itself. */
export const meansContent = (path: string): boolean => /(^|\/)\.\/*$/.test(path);
