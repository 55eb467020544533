/** The structured log of a program: pino, JSON lines. */
import { type Logger, pino } from 'pino';

export type Log = Logger;

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

export const makeLog = (options: { level?: string; file?: string } = {}): Log =>
  pino(
    { level: options.level ?? 'info', base: null },
    pino.destination({ dest: options.file ?? 2, sync: true, ...(options.file === undefined ? {} : { mkdir: true }) }),
  );

/** A log that keeps nothing. */
export const silentLog = (): Log => pino({ level: 'silent' });
