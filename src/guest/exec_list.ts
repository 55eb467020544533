/** The guest's own list of its commands. */
import { z } from 'zod';
import { ID } from './wire.ts';

/** An agent lists 1024 that run, and of those that ended 64 and 1024 that had a digest. */
export const EXECS_MOST_BYTES = 2 * 1024 * 1024;

export const ExecList = z.object({
  execs: z
    .array(
      z.object({
        id: z.string().regex(ID),
        pid: z.int(),
        running: z.boolean(),
        command: z.string().max(1024).default(''),
        tty: z.boolean().default(false),
        session: z.string().regex(ID).optional(),
        started_ms: z.int().min(0).default(0),
        exit_code: z.int().min(0).max(255).optional(),
        exit_signal: z
          .string()
          .regex(/^[A-Z0-9+-]{1,16}$/)
          .optional(),
      }),
    )
    .max(4096),
});
export type GuestExecs = z.infer<typeof ExecList>['execs'];
