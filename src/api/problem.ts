/** The schema of RFC 9457 problem details. Apart from fault.ts, which loads without zod. */
import { z } from 'zod';
import { FAULT_CODES } from './fault.ts';

export const ProblemSchema = z.strictObject({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  code: z.enum(FAULT_CODES),
  detail: z.string(),
  hint: z.string().optional().describe('what the reader can do about it'),
  reason: z.string().optional().describe('a finer word than the code, for programs'),
  ref: z.string().optional().describe('names the log line of an internal error'),
});
