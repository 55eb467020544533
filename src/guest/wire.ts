/**
 * The bytes of generation 1 (docs/guest-protocol.md): the preamble of an exec, the frames of its output, its trailers.
 * Pure functions over bytes that a hostile guest may have chosen; nothing is allocated by a length that was not checked.
 */
import type { ExecExit, ExecSpec } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';

export const MAX_PREAMBLE = 4 * 1024 * 1024;
export const MAX_FRAME = 65_536;
const HEADER = 5;
const GAP = 9;
/** A payload shorter than this is copied, so that it does not keep the whole read buffer it came in alive. */
const COPY_BELOW = 4096;

export type Channel = 'stdout' | 'stderr';

/** What an exec's output is made of. `gap`: so many bytes were dropped here. */
export type ExecPiece = { channel: Channel; data: Buffer } | { channel: Channel; gap: number };

/** What the agent takes as the ID of an exec. */
export const ID = /^[A-Za-z0-9_-]{1,64}$/;

/** What the guest is asked to run. */
export interface Asked extends Omit<ExecSpec, 'argv'> {
  id: string;
  /** Empty, with a terminal: the user's login shell. */
  argv: string[];
  /** Of all that was asked for: the same ID with another digest is refused. */
  digest?: string;
  /** The terminal's name: the command that runs under it is attached to. */
  session?: string;
  /** Where one is attached to that was there, its output begins at a line within the last so many bytes. */
  tail?: number;
}

/** The start of an exec's request body: length (4 bytes, big endian) and JSON. */
export const encodePreamble = (spec: Omit<Asked, 'stdin'> & { stdin: 'none' | 'open' | 'later' }) => {
  const json = Buffer.from(JSON.stringify(spec), 'utf8');
  if (json.length > MAX_PREAMBLE) {
    throw new Fault('invalid', `Cannot run the command: its arguments and environment have more than 4 MiB.`);
  }
  const head = Buffer.alloc(4);
  head.writeUInt32BE(json.length);
  return Buffer.concat([head, json]);
};

const broken = (what: string) => new Fault('guest', `Cannot read the command's output: the guest sent ${what}.`);

const channelOf = (byte: number | undefined): Channel => {
  if (byte === 1) return 'stdout';
  if (byte === 2) return 'stderr';
  throw broken(`an unknown channel (${byte})`);
};

const gapOf = (payload: Buffer): ExecPiece => {
  const bytes = payload.readBigUInt64BE(1);
  if (bytes === 0n || bytes > BigInt(Number.MAX_SAFE_INTEGER)) throw broken('a gap of an impossible length');
  return { channel: channelOf(payload[0]), gap: Number(bytes) };
};

const pieceOf = (channel: number, payload: Buffer): ExecPiece => {
  if (channel === 3) return gapOf(payload);
  return { channel: channelOf(channel), data: payload.length < COPY_BELOW ? Buffer.from(payload) : payload };
};

/**
 * Takes the bytes of an output body in any portions and gives its frames; however the bytes are split, the frames are
 * the same. Holds at most one unfinished frame. Empty frames say nothing and are left out.
 */
export class FrameParser {
  readonly #head = Buffer.alloc(HEADER);
  #headLength = 0;
  #payload: Buffer | null = null;
  #filled = 0;

  /** True between two frames: only here may the body end. */
  get clean(): boolean {
    return this.#headLength === 0;
  }

  /** The frames that `chunk` completes. Throws a `guest` fault on the first malformed one. */
  push(chunk: Buffer): ExecPiece[] {
    const pieces: ExecPiece[] = [];
    let at = 0;
    while (at < chunk.length) {
      if (this.#headLength < HEADER) {
        at += this.#takeHead(chunk, at);
        if (this.#headLength < HEADER) break;
        if (this.#length() > 0) continue;
        this.#headLength = 0;
        continue;
      }
      const length = this.#length();
      if (this.#payload === null && chunk.length - at >= length) {
        pieces.push(this.#finish(chunk.subarray(at, at + length)));
        at += length;
        continue;
      }
      this.#payload ??= Buffer.allocUnsafe(length);
      const took = chunk.copy(this.#payload, this.#filled, at);
      at += took;
      this.#filled += took;
      if (this.#filled === length) pieces.push(this.#finish(this.#payload));
    }
    return pieces;
  }

  #takeHead(chunk: Buffer, at: number): number {
    const took = chunk.copy(this.#head, this.#headLength, at);
    this.#headLength += took;
    if (this.#headLength === HEADER) this.#checkHead();
    return took;
  }

  #length(): number {
    return this.#head.readUInt32BE(1);
  }

  #checkHead(): void {
    const length = this.#length();
    if (this.#head[0] === 3) {
      if (length !== GAP) throw broken(`a gap of ${length} bytes instead of ${GAP}`);
      return;
    }
    channelOf(this.#head[0]);
    if (length > MAX_FRAME) throw broken(`a frame of ${length} bytes, more than ${MAX_FRAME}`);
  }

  #finish(payload: Buffer): ExecPiece {
    const piece = pieceOf(this.#head[0] ?? 0, payload);
    this.#headLength = 0;
    this.#filled = 0;
    this.#payload = null;
    return piece;
  }
}

const field = (trailers: Record<string, unknown>, name: string, form: RegExp): string | undefined => {
  const value = trailers[name];
  if (value === undefined) return undefined;
  // A repeated trailer arrives as a list or joined with commas, and fits no form.
  if (typeof value !== 'string' || !form.test(value)) throw broken(`an unreadable ${name}`);
  return value;
};

/** The end of an exec from the trailers of its output. Throws a `guest` fault where they do not say it. */
export const exitOf = (trailers: Record<string, unknown>): ExecExit => {
  const code = field(trailers, 'nexus-exit-code', /^(?:0|[1-9]\d{0,2})$/);
  const signal = field(trailers, 'nexus-exit-signal', /^(?:[A-Z][A-Z0-9+-]{0,15}|[1-9]\d?)$/);
  const timedOut = field(trailers, 'nexus-timed-out', /^[01]$/);
  const duration = field(trailers, 'nexus-duration-us', /^\d{1,15}$/);
  if ((code === undefined) === (signal === undefined)) throw broken('no result, or two');
  if (timedOut === undefined || duration === undefined) throw broken('an incomplete result');
  if (code !== undefined && Number(code) > 255) throw broken(`the exit code ${code}`);
  return {
    type: 'exit',
    exit_code: code === undefined ? null : Number(code),
    signal: signal ?? null,
    timed_out: timedOut === '1',
    duration_ms: Number(duration) / 1000,
  };
};
