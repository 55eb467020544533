/**
 * `nexusctl exec`: a command in a VM as if it ran here. Its bytes come through untouched, its exit code is ours.
 *
 * INVARIANTS: Ctrl-C never ends us before the command was told: the signal goes to its process group in the VM, a second
 * one kills it there, a third leaves. Failures of Nexus itself are 125.
 */
import { constants } from 'node:os';
import process from 'node:process';
import type { ExecExit, ExecMessage, Signal } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import type { OpArgs } from '../api/ops.ts';
import { cutShort } from '../client/exec.ts';
import { type Cli, fail, note, out, outBytes } from './cli.ts';
import { json } from './show.ts';
import { onSignals } from './signals.ts';

export const EXIT_NEXUS = 125;
const EXIT_CANNOT_RUN = 126;
const EXIT_NO_PROGRAM = 127;
const EXIT_INT = 130;
const FORWARDED = { SIGINT: 'INT', SIGTERM: 'TERM', SIGHUP: 'HUP', SIGQUIT: 'QUIT' } as const;
const SIGNAL_MS = 5000;

/** The size of a terminal that nobody looks at. */
const NO_TERMINAL = { cols: 80, rows: 24 };

interface Running {
  cli: Cli;
  vm: string;
  exec: string | undefined;
  /** Aborting it leaves the stream. */
  abort: AbortController;
  /** What becomes the exit code if the stream is left. */
  left: number;
  /** Set when nobody reads our output: the command is being told. */
  parting?: Promise<void>;
}

const tell = async (run: Running, signal: Signal): Promise<void> => {
  const { cli, vm, exec } = run;
  if (exec === undefined) return run.abort.abort();
  const options = { signal: AbortSignal.timeout(SIGNAL_MS) };
  await cli.nexus.exec.signal({ vm, exec, signal }, options).catch((error: unknown) => {
    if (!(error instanceof Fault && error.code === 'not_found')) fail(cli, error);
  });
};

/** Passes our signals on to the command. */
const forwardSignals = (run: Running): Disposable => {
  let interrupts = 0;
  return onSignals(['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'], name => {
    run.left = name === 'SIGINT' ? EXIT_INT : 128 + constants.signals[name];
    if (name === 'SIGINT') interrupts++;
    if (interrupts === 2) note('Killing the command; once more leaves it.\n');
    if (interrupts > 2) return run.abort.abort();
    void tell(run, interrupts === 2 ? 'KILL' : FORWARDED[name]);
  });
};

const feed = async (run: Running, exec: string): Promise<void> => {
  const { cli, vm, abort } = run;
  try {
    await cli.nexus.exec.stdin({ vm, exec }, { body: process.stdin, signal: abort.signal });
  } catch (error) {
    if (!abort.signal.aborted) fail(cli, error);
  }
};

const exitCode = (exit: ExecExit): number => {
  if (exit.timed_out) note('error: The command took too long and was ended.\n');
  if (exit.exit_code !== null) return exit.exit_code;
  const number = Object.entries(constants.signals).find(([name]) => name === `SIG${exit.signal}`)?.[1];
  return 128 + (number ?? 0);
};

const show = async (run: Running, messages: AsyncIterable<ExecMessage>, interactive: boolean): Promise<number> => {
  for await (const message of messages) {
    if (message.type === 'started') {
      run.exec = message.exec;
      if (interactive) void feed(run, message.exec);
    }
    if (run.cli.json) out(json(message, 0));
    else if (message.type === 'stdout' || message.type === 'stderr')
      await outBytes(Buffer.from(message.data, 'base64'), run.abort.signal, process[message.type]);
    else if (message.type === 'gap') note(`-- ${message.bytes} bytes of ${message.channel} were dropped --\n`);
    if (message.type === 'exit') return exitCode(message);
  }
  throw cutShort();
};

/** The exit code for a failure of `exec` itself. */
const failed = (run: Running, error: unknown): number => {
  if (run.abort.signal.aborted) return run.left;
  fail(run.cli, error);
  if (!(error instanceof Fault) || error.reason === undefined) return EXIT_NEXUS;
  return error.reason === 'no_program' ? EXIT_NO_PROGRAM : EXIT_CANNOT_RUN;
};

/** What a command is run with: its standard input is ours; it has a terminal. */
export interface Way {
  interactive: boolean;
  tty: boolean;
  /** What becomes of it when somebody leaves its terminal; default: it goes on. */
  when_left?: string;
}

export const execCommand = async (cli: Cli, input: Record<string, unknown>, way: Way): Promise<void> => {
  const { interactive } = way;
  const { vm, argv, tty: _flag, ...rest } = input;
  const words = Array.isArray(argv) ? argv.map(String) : [];
  const run: Running = { cli, vm: String(vm), exec: undefined, abort: new AbortController(), left: EXIT_INT };
  if (interactive && way.tty && !cli.json) return onTerminal(run, { vm: run.vm, argv: words, ...rest }, way);
  cli.onBrokenPipe = () => {
    run.left = 141;
    run.parting ??= tell(run, 'TERM').finally(() => run.abort.abort()); // as SIGPIPE would end it here
  };
  using _ = forwardSignals(run);
  try {
    const stdin = interactive ? { stdin: 'open' as const } : {};
    const args = { vm: run.vm, argv: words, ...rest, ...stdin, ...(way.tty ? { tty: NO_TERMINAL } : {}) };
    cli.code = await show(run, cli.nexus.exec.run(args, { signal: run.abort.signal }), interactive);
  } catch (error) {
    await run.parting;
    cli.code = failed(run, error);
  } finally {
    run.abort.abort(); // ends the feeding of its standard input
    if (interactive) process.stdin.destroy();
  }
};

const onTerminal = async (run: Running, args: OpArgs<'exec.run'>, way: Way): Promise<void> => {
  try {
    const { execOnTerminal } = await import('./terminal.ts');
    run.cli.code = await execOnTerminal(run.cli, args, way.when_left);
  } catch (error) {
    run.cli.code = failed(run, error);
  }
};

/** What a command writes, from now on or from an offset. Ctrl-C leaves it. */
export const attachCommand = async (cli: Cli, input: Record<string, unknown>): Promise<void> => {
  const { vm, exec, ...from } = input;
  const run: Running = { cli, vm: String(vm), exec: String(exec), abort: new AbortController(), left: EXIT_INT };
  cli.code = await show(run, cli.nexus.exec.attach({ vm: run.vm, exec: String(exec), ...from }), false);
};

/** Puts `--` before the command, so that its flags are its own: `exec web -u bob ls -l`. */
export const splitCommand = (words: readonly string[], takesValue: (flag: string) => boolean): string[] => {
  let operands = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? '';
    if (word === '--') break;
    if (word.startsWith('-') && word !== '-') {
      if (takesValue(word)) i++;
      continue;
    }
    if (++operands === 2) return [...words.slice(0, i), '--', ...words.slice(i)];
  }
  return [...words];
};
