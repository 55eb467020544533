/** The output of a command, gathered. */
import type { ExecMessage } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';

export interface ExecResult {
  exit_code: number | null;
  signal: string | null;
  stdout: Buffer;
  stderr: Buffer;
  /** Output is missing: beyond the cap, or lost while nobody read. */
  truncated: boolean;
  timed_out: boolean;
  duration_ms: number;
}

/** Reads an `exec.run` stream to its end. Of each channel the first `max_bytes` are kept (16 MiB by default). */
export const execResult = async (
  messages: AsyncIterable<ExecMessage>,
  options: { max_bytes?: number } = {},
): Promise<ExecResult> => {
  const max = options.max_bytes ?? 16 * 1024 * 1024;
  const kept = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  const sizes = { stdout: 0, stderr: 0 };
  let truncated = false;
  for await (const message of messages) {
    if (message.type === 'gap') truncated = true;
    if (message.type === 'stdout' || message.type === 'stderr') {
      const bytes = Buffer.from(message.data, 'base64');
      const room = max - sizes[message.type];
      if (bytes.length > room) truncated = true;
      const part = bytes.length > room ? bytes.subarray(0, room) : bytes;
      sizes[message.type] += part.length;
      if (part.length > 0) kept[message.type].push(part);
    }
    if (message.type !== 'exit') continue;
    const { exit_code, signal, timed_out, duration_ms } = message;
    const stdout = Buffer.concat(kept.stdout);
    const stderr = Buffer.concat(kept.stderr);
    return { exit_code, signal, stdout, stderr, truncated, timed_out, duration_ms };
  }
  throw new Fault('guest', 'Cannot tell how the command ended: its stream stopped before its exit.');
};
