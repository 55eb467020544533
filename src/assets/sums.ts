/**
 * Lists of SHA-256 sums: what sha256sum writes (`hash  name`, `hash *name`), what the BSDs write (`SHA256 (name) = hash`), or a
 * hash alone for a list of one, unless it is signed: a signature over a hash without a name says nothing of what it is the hash of,
 * and could be that of another version. Whatever could be read in two ways is refused.
 */
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';

const MAX_LINES = 100_000;
const HASH = /^[0-9a-f]{64}$/i;
const GNU = /^([0-9a-f]{64})(?: {2}| \*)(.+)$/i;
const LOOSE = /^([0-9a-f]{64})[ \t]+(.+)$/i;
const BSD = /^SHA256 \((.+)\) = ([0-9a-f]{64})$/i;

const bare = (name: string): string => (name.startsWith('./') ? name.slice(2) : name);

const entry = (line: string): { name: string; hash: string } | undefined => {
  const [, bsdName, bsdHash] = BSD.exec(line) ?? [];
  if (bsdName !== undefined && bsdHash !== undefined) return { name: bare(bsdName), hash: bsdHash.toLowerCase() };
  const [, hash, name] = GNU.exec(line) ?? LOOSE.exec(line) ?? [];
  return hash === undefined || name === undefined ? undefined : { name: bare(name), hash: hash.toLowerCase() };
};

/** The text of a list; throws `unverified` if it is none. */
export const listText = (bytes: Uint8Array, list: string): string => {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    if (!text.includes('\0')) return text;
  } catch {
    // told below
  }
  throw new Fault('unverified', `Cannot use the checksums of ${plain(list)}: they are no text.`);
};

/** The hash of `name` in the list, lower case. */
export const sumFor = (text: string, name: string, list: string, { signed = false } = {}): string => {
  const bad = (why: string) => new Fault('unverified', `Cannot use the checksums of ${plain(list)}: ${why}.`);
  const lines = text.split('\n').map(line => line.replace(/\r$/, ''));
  if (lines.length > MAX_LINES) throw bad('they are too many');
  const filled = lines.filter(line => line.trim() !== '');
  const [first = ''] = filled;
  if (filled.length === 1 && HASH.test(first.trim())) {
    if (signed) throw bad('what is signed is a hash without a name');
    return first.trim().toLowerCase();
  }
  const found = new Set(filled.flatMap(line => entry(line) ?? []).flatMap(e => (e.name === bare(name) ? e.hash : [])));
  const [hash] = found;
  if (hash === undefined) throw bad(`there is none for ${plain(name)}`);
  if (found.size > 1) throw bad(`there are two for ${plain(name)}`);
  return hash;
};
