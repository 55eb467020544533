/**
 * Lines of ours in the console's log. Each begins with the byte 0x1e, which is replaced in what the guest writes: a guest
 * cannot forge one, and every 0x1e in a log begins a line of ours. Then comes the kind:
 *
 *     N<text>                a note, shown
 *     G<text>                a gap, shown as such
 *     B<boot> <ms> <text>    boot number <boot> begins, shown
 *     T<ms>                  what follows was written from then on; hidden
 *     C<boot> <ms>           first line of a file: it goes on where the rotated file ended; hidden
 */
import { plain } from '../lib/text.ts';

export type ConsoleItem = { type: 'line'; line: string } | { type: 'gap'; detail: string };

export const MARK = 0x1e;
/** Of a mark what says its time and its boot lies in so many bytes. */
export const MARK_HEAD = 48;

const RS = String.fromCharCode(MARK);

export type MarkKind = 'note' | 'gap';

const iso = (ms: number): string => new Date(ms).toISOString();
const oneLine = (text: string): string => text.replace(/[\u0000-\u001f\u007f]+/g, ' ');

/** A note or a gap; with two times, of what happened between them. */
export const markLine = (kind: MarkKind, text: string, from_ms: number, to_ms?: number): Buffer => {
  const when = to_ms === undefined ? iso(from_ms) : `${iso(from_ms)} to ${iso(to_ms)}`;
  return Buffer.from(`${RS}${kind === 'gap' ? 'G' : 'N'}--- ${when}: ${oneLine(text)}\n`);
};

export const bootLine = (boot: number, ms: number, text: string): Buffer =>
  Buffer.from(`${RS}B${boot} ${ms} --- ${iso(ms)}: ${oneLine(text)}\n`);

/** The last line in these bytes that begins a boot. */
export const bootLineIn = (bytes: Buffer): Buffer | undefined => {
  const at = bytes.lastIndexOf(`${RS}B`);
  return at === -1 ? undefined : Buffer.from(bytes.subarray(at, bytes.indexOf(10, at) + 1));
};

export const timeLine = (ms: number): Buffer => Buffer.from(`${RS}T${ms}\n`);

export const continuedLine = (boot: number, ms: number): Buffer => Buffer.from(`${RS}C${boot} ${ms}\n`);

/** What a mark says for machines. */
export interface Mark {
  kind: 'boot' | 'time' | 'continued';
  ms: number;
  /** The boot that begins or goes on; 0 before the first, and for a time. */
  boot: number;
}

const KINDS: Record<string, Mark['kind']> = { B: 'boot', T: 'time', C: 'continued' };

/** The mark at the beginning of these bytes; undefined for notes, gaps, and what a crash of the host left half written. */
export const parseMark = (bytes: Buffer): Mark | undefined => {
  const head = bytes.subarray(0, MARK_HEAD).toString('latin1');
  const found = /^\x1e(?:([BC])(\d{1,9}) (\d{1,15})|(T)(\d{1,15}))[ \n]/.exec(head);
  const kind = KINDS[found?.[1] ?? found?.[4] ?? ''];
  if (found === null || kind === undefined) return undefined;
  return { kind, boot: Number(found[2] ?? 0), ms: Number(found[3] ?? found[5]) };
};

/** A line of the log as it may be shown; undefined: it is not shown. */
export const itemOf = (line: Buffer): ConsoleItem | undefined => {
  if (line[0] !== MARK) return { type: 'line', line: plain(line.toString('utf8')) };
  const kind = String.fromCharCode(line[1] ?? 0);
  const text = plain(line.subarray(2).toString('utf8'));
  if (kind === 'G') return { type: 'gap', detail: text };
  if (kind === 'N') return { type: 'line', line: text };
  return kind === 'B' ? { type: 'line', line: text.replace(/^\d+ \d+ /, '') } : undefined;
};

export const textOf = (item: ConsoleItem): string => (item.type === 'line' ? item.line : item.detail);
