/** Somebody who looks at a terminal of a guest and types on it. */
import type { ExecExit } from '../../src/api/exec.ts';
import type { OpArgs } from '../../src/api/ops.ts';
import type { TerminalMessage, TerminalSay } from '../../src/api/terminal.ts';
import type { Talk } from '../../src/client/raw_talk.ts';
import { poll } from '../../src/lib/deadline.ts';
import type { World } from './world.ts';

const SEE_MS = 30_000;

export interface View extends AsyncDisposable {
  talk: Talk<TerminalMessage, TerminalSay>;
  opened: Extract<TerminalMessage, { type: 'opened' }>;
  text(): string;
  gaps(): number;
  /** Waits for the text, which comes after whatever was seen before. */
  see(text: string): Promise<void>;
  type(text: string): Promise<void>;
  exit: Promise<ExecExit | undefined>;
}

export const openView = async (w: World, args: OpArgs<'terminal.open'>): Promise<View> => {
  const talk = await w.client.terminal.open(args);
  const opened = Promise.withResolvers<View['opened']>();
  let [text, from, gaps] = ['', 0, 0];
  const exit = (async () => {
    for await (const piece of talk) {
      if (piece instanceof Uint8Array) text += Buffer.from(piece).toString('latin1');
      else if (piece.type === 'opened') opened.resolve(piece);
      else if (piece.type === 'gap') gaps += piece.bytes;
      else return piece;
    }
    return undefined;
  })();
  exit.catch(opened.reject);
  return {
    talk,
    opened: await opened.promise,
    text: () => text,
    gaps: () => gaps,
    see: async what => {
      const at = await poll(`'${what}' on the terminal`, SEE_MS, () => {
        const found = text.indexOf(what, from);
        return found < 0 ? undefined : found;
      }).catch(error => {
        throw new Error(`${error.message}; it shows ${JSON.stringify(text.slice(-500))}`);
      });
      from = at + what.length;
    },
    type: what => talk.send(Buffer.from(what)),
    exit,
    [Symbol.asyncDispose]: async () => {
      talk.close();
      await talk.over;
      await exit.catch(() => {});
    },
  };
};
