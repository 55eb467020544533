import { createHash } from 'node:crypto';
import { TypeID, typeid } from 'typeid-js';

export type IdPrefix = 'vm' | 'img' | 'tpl' | 'bld' | 'ws' | 'krn' | 'rfs' | 'fcr' | 'prv' | 'look' | 'job' | 'exec';

/** The same ID for the same words, no matter who asks when. */
export const idOf = (prefix: IdPrefix, ...words: readonly string[]): string => {
  const hash = createHash('sha256').update(JSON.stringify(words)).digest();
  return TypeID.fromUUIDBytes(prefix, hash.subarray(0, 16)).toString();
};

/** A new TypeID: sortable by time, 26 characters after the prefix. */
export const newId = (prefix: IdPrefix): string => typeid(prefix).toString();
