/** Things that were looked at, as lines for people. */
import { styleText } from 'node:util';
import { plain } from './text.ts';

export interface CheckLine {
  name: string;
  level: 'ok' | 'warn' | 'fail';
  reason?: string | undefined;
  detail: string;
  hint?: string | undefined;
}

const COLOR = { ok: 'green', warn: 'yellow', fail: 'red' } as const;

/** `ok  name  detail`, and below it what mends what is not ok. Colours where the stream shows them. */
export const checksText = (checks: readonly CheckLine[], stream: NodeJS.WritableStream): string => {
  const width = Math.max(0, ...checks.map(check => check.name.length));
  const lines = checks.map(({ name, level, reason, detail, hint }) => {
    const word = styleText(COLOR[level], level.padEnd(4), { stream });
    const why = reason === undefined ? '' : `${plain(reason)}: `;
    const line = `${word}  ${plain(name).padEnd(width)}  ${why}${plain(detail)}\n`;
    return hint === undefined || level === 'ok' ? line : `${line}${' '.repeat(width + 8)}-> ${plain(hint)}\n`;
  });
  return lines.join('');
};
