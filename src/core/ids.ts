import { typeid } from 'typeid-js';

export type IdPrefix = 'vm' | 'img' | 'tpl' | 'bld' | 'ws' | 'krn' | 'rfs' | 'fcr' | 'prv' | 'look' | 'job' | 'exec';

/** A new TypeID: sortable by time, 26 characters after the prefix. */
export const newId = (prefix: IdPrefix): string => typeid(prefix).toString();
