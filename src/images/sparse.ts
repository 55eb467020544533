/**
 * Sparse files in tar, in GNU's four forms (GNU tar manual, "Storing Sparse Files"): type S with extension blocks; pax 0.0 and 0.1
 * with the map in the pax header; pax 1.0 with the map before the data. Only checked: the bytes are passed on as they are.
 */
import { BLOCK, bad, decimal, type Header, type Pax, roundUp, size } from './tar.ts';

const MAX_REGIONS = 1_000_000;
const MAX_REAL = 16 * 1024 ** 4;

interface Sparse {
  /** Bytes that the file will take up. */
  stored: number;
  /** Bytes of extension blocks between header and data. */
  extensions: number;
}

/** Regions ascend, do not overlap, end inside the file, and fill the stored data exactly, or readers disagree where the next entry begins. */
const check = (path: string, regions: number[], real: number, data: number): number => {
  let end = 0;
  let stored = 0;
  for (let i = 0; i + 1 < regions.length; i += 2) {
    const [offset, length] = [regions[i] ?? 0, regions[i + 1] ?? 0];
    if (offset < end || (stored % BLOCK !== 0 && length > 0)) throw bad(path, 'has a broken sparse map');
    end = offset + length;
    stored += length;
  }
  if (regions.length % 2 !== 0 || end > real || real > MAX_REAL || stored !== data)
    throw bad(path, 'has a sparse map that does not fit its data');
  return stored;
};

/** Pairs of 12-byte numbers; ends at the first empty pair. */
const pairs = (bytes: Buffer, count: number, path: string, into: number[]): void => {
  for (let i = 0; i < count; i++) {
    const at = i * 24;
    if (bytes[at] === 0) return;
    into.push(size(bytes.subarray(at, at + 12), path), size(bytes.subarray(at + 12, at + 24), path));
  }
};

interface Entry {
  header: Header;
  block: Buffer;
  pax: Pax | undefined;
  path: string;
  size: number;
}

const oldForm = async (entry: Entry, take: (n: number) => Promise<Buffer>): Promise<Sparse> => {
  const { block, path } = entry;
  const regions: number[] = [];
  pairs(block.subarray(386, 482), 4, path, regions);
  let extensions = 0;
  for (let more = block[482] !== 0; more; ) {
    const next = await take(BLOCK);
    extensions += BLOCK;
    pairs(next, 21, path, regions);
    if (regions.length > 2 * MAX_REGIONS) throw bad(path, 'has too long a sparse map');
    more = next[504] !== 0;
  }
  return { stored: check(path, regions, size(block.subarray(483, 495), path), entry.size), extensions };
};

/** Pax 1.0: decimal numbers, one a line: count, then offset and length of each region; padded to a block. */
const mapInData = async (entry: Entry, take: (n: number) => Promise<Buffer>, real: number): Promise<Sparse> => {
  const numbers: number[] = [];
  let wanted = 1;
  let used = 0;
  let line = '';
  while (numbers.length < wanted) {
    if (used + BLOCK > roundUp(entry.size, BLOCK)) throw bad(entry.path, 'has a sparse map longer than its data');
    const lines = (line + (await take(BLOCK)).toString('latin1')).split('\n');
    used += BLOCK;
    line = lines.pop() ?? '';
    if (line.length > BLOCK) throw bad(entry.path, 'has a broken sparse map');
    for (const value of lines) {
      if (numbers.length === wanted) break;
      numbers.push(decimal(value, entry.path));
      if (numbers.length === 1) wanted = 1 + 2 * (numbers[0] ?? 0);
      if (wanted > 2 * MAX_REGIONS) throw bad(entry.path, 'has too long a sparse map');
    }
  }
  return { stored: check(entry.path, numbers.slice(1), real, entry.size - used), extensions: 0 };
};

/** Undefined for a file that is not sparse. */
export const sparseBytes = async (entry: Entry, take: (n: number) => Promise<Buffer>): Promise<Sparse | undefined> => {
  const { pax, path, header } = entry;
  const keys = [...(pax?.values.keys() ?? [])].filter(key => key.startsWith('GNU.sparse.'));
  const in_pax = keys.length > 0 || (pax?.regions.length ?? 0) > 0;
  if (header.type === 'S') {
    if (in_pax || pax?.values.has('size')) throw bad(path, 'has two kinds of sparse map');
    if (!header.gnu) throw bad(path, 'is a sparse file in a format that has none');
    return await oldForm(entry, take);
  }
  if (!in_pax || pax === undefined) return undefined;
  const get = (key: string) => pax.values.get(`GNU.sparse.${key}`);
  const real = decimal(get('realsize') ?? get('size') ?? '', path);
  if (get('major') === '1' && get('minor') === '0') {
    if (get('map') !== undefined || pax.regions.length > 0) throw bad(path, 'has two kinds of sparse map');
    return await mapInData(entry, take, real);
  }
  if (get('major') !== undefined && get('major') !== '0') throw bad(path, 'has an unknown kind of sparse map');
  const map = get('map');
  if (map !== undefined && pax.regions.length > 0) throw bad(path, 'has two kinds of sparse map');
  const regions = map === undefined ? pax.regions : map === '' ? [] : map.split(',').map(value => decimal(value, path));
  if (get('numblocks') !== String(regions.length / 2)) throw bad(path, 'has a broken sparse map');
  return { stored: check(path, regions, real, entry.size), extensions: 0 };
};
