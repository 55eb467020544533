/** What a channel must bear, as functions of any ready `Guest`: over a socket on this host or into a real machine. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { ExecSpec } from '../../src/api/exec.ts';
import type { ExecStream } from '../../src/guest/exec.ts';
import type { Guest } from '../../src/guest/guest.ts';
import { poll } from '../../src/lib/deadline.ts';

const MIB = 1024 * 1024;
let count = 0;

/** Runs a command; `limit` bounds its whole life. */
export const start = (
  guest: Guest,
  argv: string[],
  spec: Partial<ExecSpec> = {},
  stdin?: Readable,
  limit = AbortSignal.timeout(60_000),
): Promise<ExecStream> => {
  const id = `exec_${process.pid}_${Date.now().toString(36)}_${count++}`;
  return guest.exec({ ...ExecSpec.parse({ argv, ...spec }), id }, { stdin, signal: limit });
};

/** Reads to the end and forgets the bytes; gives the exit code. */
export const drain = async (stream: ExecStream): Promise<number | null> => {
  for await (const _ of stream);
  return (await stream.result).exit_code;
};

/** So many zero bytes, made as they are read. */
export const zeros = (bytes: number): Readable => {
  const piece = Buffer.alloc(65_536);
  let left = bytes;
  return new Readable({
    read() {
      if (left === 0) this.push(null);
      else {
        const n = Math.min(left, piece.length);
        left -= n;
        this.push(piece.subarray(0, n));
      }
    },
  });
};

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

export interface Stalled {
  true_ms_p50: number;
  true_ms_most: number;
  /** How much this process grew, MiB. */
  grown_mib: number;
}

/**
 * `streams` outputs that nobody reads and as many uploads that no command reads, each of `bytes`; meanwhile `true` must
 * answer `times` times. Afterwards each output still comes whole.
 */
export const stall = async (
  guest: Guest,
  options: { streams: number; bytes: number; times: number; limit_ms: number; grow_mib: number },
): Promise<Stalled> => {
  const { streams, bytes, times, limit_ms, grow_mib } = options;
  const limit = AbortSignal.timeout(300_000);
  const before = process.memoryUsage().rss;
  const outputs: ExecStream[] = [];
  const sleepers: ExecStream[] = [];
  const uploads: Readable[] = [];
  for (let n = 0; n < streams; n++) {
    outputs.push(await start(guest, ['head', '-c', String(bytes), '/dev/zero'], {}, undefined, limit));
    const upload = zeros(bytes);
    uploads.push(upload);
    sleepers.push(await start(guest, ['sleep', '600'], { stdin: 'open' }, upload, limit));
  }
  await sleep(500); // until all windows are full
  const took: number[] = [];
  let rss = 0;
  for (let n = 0; n < times; n++) {
    const from = performance.now();
    assert.equal(await drain(await start(guest, ['true'], {}, undefined, AbortSignal.timeout(limit_ms))), 0);
    took.push(performance.now() - from);
    rss = Math.max(rss, process.memoryUsage().rss);
  }
  const grown_mib = Math.round((rss - before) / MIB);
  assert.ok(grown_mib <= grow_mib, `this process grew by ${grown_mib} MiB, more than ${grow_mib}`);
  for (const upload of uploads) assert.equal(upload.readableEnded, false, 'an upload that nobody reads stands still');
  for (const sleeper of sleepers) {
    await guest.signalExec(sleeper.id, 'KILL', limit);
    await drain(sleeper);
    assert.equal((await sleeper.result).signal, 'KILL');
  }
  for (const output of outputs) {
    let read = 0;
    for await (const piece of output) read += 'gap' in piece ? Number.NaN : piece.data.length;
    assert.equal(read, bytes, 'a stalled output is whole when it is read at last');
    assert.equal((await output.result).exit_code, 0);
  }
  return { true_ms_p50: median(took), true_ms_most: Math.max(...took), grown_mib };
};

/** Lines of `seq FIRST …` have ten bytes each: what stands at an offset is known without keeping it. */
const FIRST = 100_000_000;
const LINE = 10;

/** A command whose output does not end. */
export const ENDLESS = ['seq', String(FIRST), '999999999'];

const expected = (offset: number, length: number): Buffer => {
  const line = Math.floor(offset / LINE);
  const skip = offset - line * LINE;
  let text = '';
  for (let n = 0; n * LINE < skip + length; n++) text += `${FIRST + line + n}\n`;
  return Buffer.from(text, 'latin1').subarray(skip, skip + length);
};

/** Checks every byte of a `seq` output against its place. */
export const checkSeq = async (
  stream: ExecStream,
  onBytes: (bytes: number) => unknown = () => {},
): Promise<{ bytes: number; gaps: number; lost: number }> => {
  let at = 0;
  let gaps = 0;
  let lost = 0;
  for await (const piece of stream) {
    if (piece.channel !== 'stdout') continue;
    if ('gap' in piece) {
      gaps++;
      lost += piece.gap;
      at += piece.gap;
      continue;
    }
    assert.ok(piece.data.equals(expected(at, piece.data.length)), `wrong bytes at ${at}`);
    at += piece.data.length;
    await onBytes(piece.data.length);
  }
  return { bytes: at, gaps, lost };
};

/** A busy machine is slow without any cut: so many times its slowest undisturbed answer is added to what a cut may take. */
const BUSY = 10;

const slowestPing = async (guest: Guest): Promise<number> => {
  let most = 0;
  for (let n = 0; n < 20; n++) most = Math.max(most, await guest.ping(AbortSignal.timeout(30_000)));
  return most;
};

export interface Cuts {
  back_ms_p50: number;
  back_ms_most: number;
  /** The slowest answer without a cut, beside the same transfers. */
  quiet_ms_most: number;
  /** Of the torrent. */
  mib: number;
}

/**
 * Cuts the connection `times` times while a torrent of output and a trickle run. Each time the guest answers again within
 * `back_ms`, new output (`between` bytes at least) comes, every byte stands in its place, and none is lost: the guest holds a command whose reader went.
 */
export const cuts = async (
  guest: Guest,
  cut: () => Promise<void> | void,
  options: { times: number; back_ms: number; between?: number },
): Promise<Cuts> => {
  const limit = AbortSignal.timeout(300_000);
  const { between = MIB } = options;
  let seen = 0;
  const torrent = await start(guest, ENDLESS, {}, undefined, limit);
  const torrentRead = checkSeq(torrent, bytes => {
    seen += bytes;
  });
  // 2000 bytes each time: much less in a reconnection than the ring holds.
  const loop = `n=${FIRST}; while [ ! -e "$STOP" ]; do seq $n $((n+199)); n=$((n+200)); sleep 0.02; done; rm "$STOP"`;
  const env = { STOP: `/tmp/nexus-stress-${process.pid}-${Date.now()}` };
  const trickle = await start(guest, ['sh', '-c', loop], { env }, undefined, limit);
  const trickleRead = checkSeq(trickle);
  // Its windows and buffers are full at each cut.
  const lag = await start(guest, ENDLESS, {}, undefined, limit);
  const lagRead = checkSeq(lag, () => sleep(1));
  const quiet = await start(guest, ['sleep', '600'], {}, undefined, limit);
  torrentRead.catch(() => {});
  trickleRead.catch(() => {});
  lagRead.catch(() => {});
  const quiet_ms = await slowestPing(guest);
  const took: number[] = [];
  for (let n = 0; n < options.times; n++) {
    const before = seen;
    await poll('output in the middle of the transfer', 30_000, () => seen > before + between || undefined, {
      every_ms: 2,
    });
    await cut();
    const from = performance.now();
    await guest.ping(AbortSignal.timeout(30_000));
    took.push(performance.now() - from);
  }
  const most = Math.max(...took);
  const limit_ms = options.back_ms + BUSY * quiet_ms;
  assert.ok(most <= limit_ms, `one cut took ${Math.round(most)} ms, more than ${Math.round(limit_ms)}`);
  await guest.signalExec(torrent.id, 'TERM', limit);
  await guest.signalExec(lag.id, 'TERM', limit);
  await drain(await start(guest, ['touch', env.STOP]));
  const { bytes, gaps, lost } = await torrentRead;
  assert.deepEqual({ gaps, lost }, { gaps: 0, lost: 0 }, 'a command faster than any ring loses nothing');
  const behind = await lagRead;
  assert.deepEqual([behind.gaps, behind.lost], [0, 0], 'nor one whose reader is slow');
  assert.equal((await torrent.result).signal, 'TERM');
  await guest.signalExec(quiet.id, 'TERM', limit);
  await drain(quiet);
  assert.equal((await quiet.result).signal, 'TERM');
  const slow = await trickleRead;
  assert.equal(slow.gaps, 0, 'a command slower than the ring loses nothing');
  assert.equal((await trickle.result).exit_code, 0);
  return { back_ms_p50: median(took), back_ms_most: most, quiet_ms_most: quiet_ms, mib: Math.round(bytes / MIB) };
};
