/** The output of a command, gathered. */
import type { ExecExit, ExecMessage } from '../api/exec.ts';
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

/** Of each channel so much is kept where nothing else is asked for. */
const KEPT_BYTES = 16 * 1024 * 1024;

export interface Gathered {
  add(channel: 'stdout' | 'stderr', bytes: Buffer): void;
  /** Something was dropped on the way. */
  missing(): void;
  result(exit: ExecExit): ExecResult;
}

/** Keeps the first `max` bytes of each channel. */
export const gather = (max = KEPT_BYTES): Gathered => {
  const kept = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  const sizes = { stdout: 0, stderr: 0 };
  let truncated = false;
  return {
    add: (channel, bytes) => {
      const room = max - sizes[channel];
      if (bytes.length > room) truncated = true;
      const part = bytes.length > room ? bytes.subarray(0, room) : bytes;
      sizes[channel] += part.length;
      if (part.length > 0) kept[channel].push(part);
    },
    missing: () => {
      truncated = true;
    },
    result: ({ type: _, ...how }) => ({
      ...how,
      stdout: Buffer.concat(kept.stdout),
      stderr: Buffer.concat(kept.stderr),
      truncated,
    }),
  };
};

export const cutShort = (): Fault =>
  new Fault('guest', 'Cannot tell how the command ended: its stream stopped before its exit.');

/** Reads an `exec.run` stream to its end. Of each channel the first `max_bytes` are kept (16 MiB by default). */
export const execResult = async (
  messages: AsyncIterable<ExecMessage>,
  options: { max_bytes?: number } = {},
): Promise<ExecResult> => {
  const gathered = gather(options.max_bytes);
  for await (const message of messages) {
    if (message.type === 'gap') gathered.missing();
    if (message.type === 'stdout' || message.type === 'stderr')
      gathered.add(message.type, Buffer.from(message.data, 'base64'));
    if (message.type === 'exit') return gathered.result(message);
  }
  throw cutShort();
};
