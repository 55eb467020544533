/** Asset files on disk against their record. */
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { Fault } from '../api/fault.ts';
import { sha256File } from '../lib/files.ts';

/** Hashes a file again; `unverified` names the file that is missing or is not what was recorded. */
export const verifyFile = async (
  path: string,
  record: { sha256: string; size_bytes: number },
  signal?: AbortSignal,
): Promise<void> => {
  const bad = (why: string, cause?: unknown) =>
    new Fault('unverified', `Cannot verify ${basename(path)}: ${why}.`, {
      hint: 'Remove it and download it again.',
      cause,
    });
  try {
    const { size } = await stat(path);
    if (size !== record.size_bytes) throw bad(`it is ${size} bytes long, not ${record.size_bytes}`);
    if ((await sha256File(path, signal)) !== record.sha256) throw bad('its SHA-256 is not the recorded one');
  } catch (error) {
    if (error instanceof Fault || signal?.aborted) throw error;
    throw bad(error instanceof Error ? error.message : String(error), error);
  }
};
