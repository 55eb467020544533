/**
 * `nexusctl attach` and `exec -i -t`: this terminal as one of the guest's.
 *
 * INVARIANTS: from `takeTerminal` on the terminal is raw, and it is given back, as it was, in every way to leave that a process is told
 * of: the end of the command, the keys, a fault, a signal, an exception. Nothing else is written to it meanwhile.
 */
import { once } from 'node:events';
import { constants } from 'node:os';
import process from 'node:process';
import type { ExecExit } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import type { OpArgs } from '../api/ops.ts';
import type { TerminalMessage, TerminalSay } from '../api/terminal.ts';
import type { Talk } from '../client/raw_talk.ts';
import { runAny } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { type Cli, note } from './cli.ts';
import { Keyboard } from './keyboard.ts';
import { Modes } from './modes.ts';

const LEAVING = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
const STTY_MS = 2000;
const KEYS = 'Ctrl-P Ctrl-Q';

type TerminalTalk = Talk<TerminalMessage, TerminalSay>;

/** How it came to its end: the command's own, or by one who left. */
type End = ExecExit | 'left' | NodeJS.Signals;

interface Seat {
  talk: TerminalTalk;
  modes: Modes;
  end: End | undefined;
}

const sizeHere = (): { cols: number; rows: number } => ({
  cols: process.stdout.columns || 80,
  rows: process.stdout.rows || 24,
});

const needTerminal = (what: string): void => {
  if (process.stdin.isTTY === true && process.stdout.isTTY === true) return;
  throw new Fault('invalid', `Cannot ${what}: standard input and output are no terminal.`);
};

/** Raw, until the result is called. Node leaves the terminal's own line ends on, and programs of the guest make theirs. */
const takeTerminal = async (modes: Modes): Promise<() => void> => {
  process.stdin.setRawMode(true);
  let given = false;
  const giveBack = () => {
    if (given) return;
    given = true;
    process.off('exit', giveBack);
    process.stdout.write(modes.undo());
    process.stdin.setRawMode(false);
  };
  process.on('exit', giveBack);
  await rawOutput();
  return giveBack;
};

const rawOutput = async (): Promise<void> => {
  await runAny(['stty', '-F', `/proc/${process.pid}/fd/0`, '-opost'], { timeout_ms: STTY_MS }).catch(() => {}); // without stty lines look odd in some programs
};

const leave = (seat: Seat, end: End): void => {
  seat.end ??= end;
  seat.talk.close();
};

/** Sends what is typed, as fast as it is taken. */
const typing = (seat: Seat): (() => void) => {
  const { talk } = seat;
  const keyboard = new Keyboard({
    onKeys: bytes => {
      process.stdin.pause();
      talk.send(bytes).finally(() => process.stdin.resume());
    },
    onLeave: () => leave(seat, 'left'),
  });
  const onData = (bytes: Buffer) => keyboard.type(bytes);
  const onEnd = () => leave(seat, 'left');
  process.stdin.on('data', onData).on('end', onEnd).on('error', onEnd);
  return () => {
    keyboard[Symbol.dispose]();
    process.stdin.off('data', onData).off('end', onEnd).off('error', onEnd).pause();
  };
};

const watching = (seat: Seat): (() => void) => {
  const resize = () => void seat.talk.send({ type: 'resize', ...sizeHere() });
  const again = () => {
    process.stdin.setRawMode(true); // whoever stopped us has had the terminal meanwhile
    void rawOutput().then(resize);
  };
  const onSignal = (name: NodeJS.Signals) => leave(seat, name);
  process.stdout.on('resize', resize);
  process.on('SIGCONT', again);
  for (const name of LEAVING) process.on(name, onSignal);
  return () => {
    process.stdout.off('resize', resize);
    process.off('SIGCONT', again);
    for (const name of LEAVING) process.off(name, onSignal);
  };
};

/** Shows and types until the end. */
const sit = async (talk: TerminalTalk): Promise<End> => {
  const seat: Seat = { talk, modes: new Modes(), end: undefined };
  const unwatch = watching(seat);
  const giveBack = await takeTerminal(seat.modes);
  const still = typing(seat);
  try {
    for await (const piece of talk) {
      if (piece instanceof Uint8Array) {
        seat.modes.see(piece);
        if (!process.stdout.write(piece)) await Promise.race([once(process.stdout, 'drain'), talk.over]);
      } else if (piece.type === 'exit') seat.end ??= piece;
    }
  } catch (error) {
    giveBack();
    note('\n'); // the cursor is wherever the guest has left it
    throw error;
  } finally {
    still();
    giveBack();
    unwatch();
    talk.close();
    process.stdin.destroy(); // else it keeps us here
  }
  if (seat.end === undefined)
    throw new Fault('guest', 'Cannot tell how the command ended: its terminal closed before.');
  return seat.end;
};

const numberOf = (signal: string): number => Object.entries(constants.signals).find(([n]) => n === signal)?.[1] ?? 0;

const codeOf = (end: End, back: string): number => {
  if (end === 'left') {
    note(`\nLeft; ${back}\n`);
    return 0;
  }
  if (typeof end === 'string') {
    note('\n');
    return 128 + numberOf(end);
  }
  if (end.timed_out) note('error: The command took too long and was ended.\n');
  return end.exit_code ?? 128 + numberOf(`SIG${end.signal}`);
};

/** `nexusctl attach`: a session, or a command that has a terminal. */
export const attachTerminal = async (cli: Cli, input: Record<string, unknown>): Promise<void> => {
  needTerminal('attach');
  const { vm, ...rest } = input;
  const args: OpArgs<'terminal.open'> = { ...sizeHere(), ...rest, vm: String(vm) };
  const talk = await cli.nexus.terminal.open(args);
  const what = args.exec === undefined ? `session ${args.session ?? 'main'}` : `command ${plain(args.exec)}`;
  note(`${what} of VM ${plain(args.vm)}; ${KEYS} leaves it\n`);
  cli.code = codeOf(await sit(talk), 'it goes on, and nexusctl attach comes back to it.');
};

/** A command on this terminal: it is run, then attached to as any other. */
export const execOnTerminal = async (cli: Cli, args: OpArgs<'exec.run'>, back?: string): Promise<number> => {
  needTerminal('run a command on a terminal');
  const size = sizeHere();
  const started = new AbortController();
  const messages = cli.nexus.exec.run({ ...args, tty: size }, { signal: started.signal });
  const first = (await messages.next()).value;
  if (first?.type !== 'started') throw new Fault('guest', 'Cannot tell what became of the command: it did not start.');
  const { exec } = first;
  const talk = await cli.nexus.terminal.open({ vm: args.vm, exec, ...size });
  messages.next().catch(() => {}); // it has served; the other reader is there
  started.abort(new Fault('canceled', 'The terminal is attached.'));
  return codeOf(await sit(talk), back ?? `it goes on, and nexusctl attach ${args.vm} --exec ${exec} comes back to it.`);
};
