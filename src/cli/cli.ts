/** What every command is given: the daemon, where to write, and how it ends. */
import { once } from 'node:events';
import process from 'node:process';
import { EXIT_UNREACHABLE, Fault } from '../api/fault.ts';
import { Nexus } from '../client/nexus.ts';
import { Unreachable } from '../client/transport.ts';
import { plain } from '../lib/text.ts';
import { json } from './show.ts';

/** What a program killed by SIGPIPE leaves in its shell: 128 + 13. */
const EXIT_PIPE = 141;

export interface Cli {
  /** Answers as JSON, and errors as problem documents. */
  json: boolean;
  /** The daemon's socket; undefined: the usual places. */
  socket: string | undefined;
  /** The exit code, set by the command. */
  code: number;
  /** Called when nobody reads standard output any more. */
  onBrokenPipe: () => void;
  /** Opened on first use. */
  readonly nexus: Nexus;
  close(): Promise<void>;
}

export const makeCli = (): Cli => {
  let nexus: Nexus | undefined;
  const cli: Cli = {
    json: false,
    socket: undefined,
    code: 0,
    onBrokenPipe: () => process.exit(EXIT_PIPE),
    get nexus() {
      nexus ??= new Nexus({ socket: cli.socket });
      return nexus;
    },
    close: async () => nexus?.[Symbol.asyncDispose](),
  };
  process.stdout.on('error', error => {
    if ('code' in error && error.code === 'EPIPE') cli.onBrokenPipe();
    else process.exit(1);
  });
  process.stderr.on('error', () => {});
  return cli;
};

export const out = (text: string): void => {
  process.stdout.write(text);
};

/** Bytes as they are, no faster than they are taken. */
export const outBytes = async (
  bytes: Uint8Array,
  signal?: AbortSignal,
  stream: NodeJS.WriteStream = process.stdout,
): Promise<void> => {
  if (!stream.write(bytes)) await once(stream, 'drain', { signal });
};

export const note = (text: string): void => {
  process.stderr.write(text);
};

export const onTerminal = (): boolean => process.stdin.isTTY === true && process.stderr.isTTY === true;

/** Goes on if somebody on the terminal says yes. */
export const agreed = async (question: string): Promise<void> => {
  const { createInterface } = await import('node:readline/promises');
  const asking = createInterface({ input: process.stdin, output: process.stderr });
  try {
    if (!/^y(es)?$/i.test((await asking.question(`${question} [y/N] `)).trim()))
      throw new Fault('canceled', 'Nothing was done.');
  } finally {
    asking.close();
  }
};

const startHint = (error: Unreachable): string => {
  if (error.errno === 'EACCES') return 'The socket belongs to another user: run nexusctl as that user.';
  if (error.errno !== 'ENOENT' && error.errno !== 'ECONNREFUSED') return 'nexusctl status';
  return 'Start the daemon with nexusd, or name its socket with --socket or NEXUS_SOCKET.';
};

/** What is told of a daemon that does not answer, in the form of a problem document. */
export const unreachableProblem = (error: Unreachable) => ({
  code: 'unreachable',
  detail: error.message,
  hint: startHint(error),
});

const say = (cli: Cli, message: string, hint: string | undefined, problem: unknown): void => {
  if (cli.json) note(json(problem, 0));
  else
    note(`error: ${message.split('\n').map(plain).join('\n')}\n${hint === undefined ? '' : `hint: ${plain(hint)}\n`}`);
};

/** Says what went wrong and gives the exit code for it. */
export const fail = (cli: Cli, error: unknown): number => {
  if (error instanceof Fault) {
    say(cli, error.message, error.hint, error.problem());
    return error.exit_code;
  }
  if (error instanceof Unreachable) {
    const problem = unreachableProblem(error);
    say(cli, problem.detail, problem.hint, problem);
    return EXIT_UNREACHABLE;
  }
  const message = error instanceof Error ? error.message : String(error);
  say(cli, message, undefined, { code: 'internal', detail: message });
  if (process.env.NEXUS_DEBUG && error instanceof Error) note(`${error.stack}\n`);
  return 1;
};
