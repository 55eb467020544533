/** The contract as plain data. A bundle holds what this evaluates to, and neither zod nor the schemas. */
import { derive, type Row } from './derive.ts';
import { ops } from './ops.ts';

export const TABLE: Readonly<Record<string, Row>> = derive(ops);
