/** Viewers of terminals in guests. The agent's list is the truth of what runs; a daemon that starts again has forgotten nothing. */
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { TerminalMessage, TerminalSay } from '../api/terminal.ts';
import type { Viewer } from '../guest/guest.ts';
import type { Asked } from '../guest/wire.ts';
import type { HandlersOf, Talk } from './handler.ts';
import type { Host, Live } from './host.ts';
import { newId } from './ids.ts';
import { awaitGuest, brokenOff, needLive, small } from './inside.ts';
import { withEnv } from './provision.ts';

const TAIL_BYTES = 256 * 1024;
const MAIN = 'main';

export const terminalHandlers = (host: Host): HandlersOf<'terminal'> => ({
  'terminal.open': async (ctx, input) => {
    if (input.exec !== undefined && input.session !== undefined)
      throw new Fault('invalid', 'Cannot open a terminal: give a session or a command, not both.');
    const live = await needLive(host, input.vm);
    await awaitGuest(live, input.vm, ctx.signal);
    const viewer = await view(live, input, ctx.signal);
    try {
      const { cols, rows } = input;
      if (viewer.made) live.sizes.set(viewer.output.id, { cols, rows });
      else if (!input.read_only) await fit(live, viewer.output.id, input);
      return talk(host, live, viewer, input);
    } catch (error) {
      viewer.output.detach();
      throw error;
    }
  },
});

type Opening = OpIn<'terminal.open'>;
type Opened = Viewer & { session: string | null; made: boolean };
interface Size {
  cols: number;
  rows: number;
}

const view = async (live: Live, input: Opening, signal: AbortSignal): Promise<Opened> => {
  const { vm, exec, session = MAIN, read_only, user, cols, rows } = input;
  if (exec === undefined && !read_only) {
    const id = newId('exec');
    const shell: Asked = {
      id,
      argv: [],
      env: withEnv(live, {}),
      stdin: 'none',
      on_disconnect: 'keep',
      tty: { cols, rows },
      session,
      tail: TAIL_BYTES,
      ...(user !== undefined && { user }),
    };
    const viewer = await live.guest.viewTerminal(shell, signal);
    return { ...viewer, session, made: viewer.output.id === id };
  }
  const list = await live.guest.execs(small(live));
  const found = list.find(one => (exec === undefined ? one.running && one.session === session : one.id === exec));
  if (found === undefined) {
    const what = exec === undefined ? `session '${session}'` : `command ${exec}`;
    throw new Fault('not_found', `There is no ${what} in VM '${vm}'.`, { hint: `nexusctl execs list ${vm}` });
  }
  if (!found.tty) throw new Fault('bad_state', `Cannot look at command ${found.id}: it has no terminal.`);
  const viewer = await live.guest.viewTerminal({ id: found.id, tail: TAIL_BYTES }, signal);
  return { ...viewer, session: found.session ?? null, made: false };
};

/** Gives the terminal this size. One whose command has ended has none any more, and the output says so. */
const fit = async (live: Live, exec: string, { cols, rows }: Size): Promise<void> => {
  live.sizes.set(exec, { cols, rows });
  await live.guest.resizeExec(exec, cols, rows, small(live)).catch((error: unknown) => {
    live.sizes.delete(exec);
    if (!(error instanceof Fault && ['bad_state', 'not_found'].includes(error.code))) throw error;
  });
};

const talk = (
  host: Host,
  live: Live,
  viewer: Opened,
  { read_only, cols, rows }: Opening,
): Talk<TerminalMessage, TerminalSay> => {
  const { id } = viewer.output;
  let mine: Size = { cols, rows };
  return {
    output: shown(host, live, viewer),
    take: async piece => {
      if (read_only) return;
      if (!Buffer.isBuffer(piece)) {
        mine = piece;
        return fit(live, id, mine);
      }
      // the size is that of the viewer who typed last
      const now = live.sizes.get(id);
      if (now?.cols !== mine.cols || now.rows !== mine.rows) await fit(live, id, mine);
      await viewer.keys.write(piece);
    },
  };
};

const shown = async function* (host: Host, live: Live, viewer: Opened): AsyncGenerator<Uint8Array | TerminalMessage> {
  const { output, session, made } = viewer;
  try {
    yield { type: 'opened', exec: output.id, pid: output.pid, session, made };
    for await (const piece of output) {
      if ('gap' in piece) yield { type: 'gap', bytes: piece.gap };
      else yield piece.data;
    }
    yield await output.result;
  } catch (error) {
    throw await brokenOff(host, live, output.id, error);
  } finally {
    live.sizes.delete(output.id); // whoever looks on and types sets it anew; of one that ends unwatched nothing is left
    output.detach();
  }
};
