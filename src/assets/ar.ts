/**
 * A strict reader of `ar` archives as .deb packages use them (ar(5), deb(5)), as a stream.
 * No GNU or BSD long names, no symbol tables: a .deb has none.
 */
import { Fault } from '../api/fault.ts';
import { Taker } from './take.ts';

export interface ArMember {
  name: string;
  size: number;
  /** Its bytes; what the reader leaves of them is passed over. Ends early only together with an error of the archive. */
  content: AsyncGenerator<Buffer>;
}

const MAGIC = '!<arch>\n';
const HEADER = 60;
const MAX_MEMBERS = 16;

const bad = (why: string): Fault => new Fault('unsupported', `Cannot read the package: ${why}.`);

const header = (bytes: Buffer): { name: string; size: number } => {
  const text = bytes.toString('latin1');
  const fields = /^([A-Za-z0-9._+-]{1,15})\/? *$/.exec(text.slice(0, 16));
  if (text.length < HEADER) throw bad('it is cut short');
  if (text.slice(58) !== '`\n') throw bad('a member of the ar archive has no end mark');
  if (fields?.[1] === undefined) throw bad('a member of the ar archive has a bad name');
  if (!/^\d{1,12} *\d{0,6} *\d{0,6} *[0-7]{0,8} *$/.test(text.slice(16, 48))) throw bad('a member has a bad header');
  const size = /^(\d{1,10}) *$/.exec(text.slice(48, 58))?.[1];
  if (size === undefined) throw bad('a member of the ar archive has a bad size');
  return { name: fields[1], size: Number(size) };
};

/** The bytes of a member, all of them or a fault. */
const whole = async function* (taker: Taker, name: string, size: number): AsyncGenerator<Buffer> {
  const end = taker.taken + size;
  yield* taker.stream(size);
  if (taker.taken !== end) throw bad(`its member ${name} is cut short`);
};

/** The members, in their order. */
export const arMembers = async function* (from: AsyncIterable<Buffer>): AsyncGenerator<ArMember> {
  const taker = new Taker(from);
  const seen = new Set<string>();
  try {
    if ((await taker.bytes(MAGIC.length)).toString('latin1') !== MAGIC) throw bad('it is not an ar archive');
    for (let next = await taker.bytes(HEADER); next.length > 0; next = await taker.bytes(HEADER)) {
      if (seen.size === MAX_MEMBERS) throw bad(`it has more than ${MAX_MEMBERS} members`);
      const { name, size } = header(next);
      if (seen.has(name)) throw bad(`its member ${name} stands there twice`);
      seen.add(name);
      const end = taker.taken + size;
      yield { name, size, content: whole(taker, name, size) };
      for await (const _ of whole(taker, name, end - taker.taken)) {
        // what the reader did not want
      }
      const padding = size % 2 === 1 ? await taker.bytes(1) : Buffer.alloc(0);
      if (padding.length === 1 && padding[0] !== 0x0a) throw bad(`its member ${name} is badly padded`);
    }
  } finally {
    await taker.close();
  }
};

/** The data archive of a .deb of format 2, behind its version and its control archive. Reads the package to its end. */
export const debData = async function* (
  from: AsyncIterable<Buffer>,
): AsyncGenerator<{ name: string; content: AsyncGenerator<Buffer> }> {
  const order = ['debian-binary', 'control.tar', 'data.tar'];
  for await (const { name, size, content } of arMembers(from)) {
    if (name.startsWith('_')) continue;
    const wanted = order.shift();
    if (wanted === undefined) continue;
    if (wanted === 'debian-binary') {
      if (name !== wanted || size !== 4) throw bad('it does not begin with debian-binary');
      const version: Buffer[] = [];
      for await (const part of content) version.push(part);
      if (!/^2\.\d\n$/.test(Buffer.concat(version).toString('latin1'))) throw bad('it is not of format 2');
    } else if (!name.startsWith(wanted)) throw bad(`it has no ${wanted.replace('.tar', '')} archive`);
    else if (wanted === 'data.tar') {
      if (size === 0) throw bad('its data archive is empty');
      yield { name, content };
    }
  }
  if (order.length > 0) throw bad(`it has no ${order[0]?.replace('.tar', '')} archive`);
};
