/** nexusctl: a client and nothing else. */
import { type Command, CommanderError } from 'commander';
import { fail, makeCli } from './cli.ts';
import { EXIT_NEXUS, splitCommand } from './exec.ts';
import { makeProgram } from './program.ts';

/** Global flags that come before the first word. */
const firstWord = (argv: readonly string[]): number => {
  for (let i = 0; i < argv.length; i++) {
    if (argv[i] === '--socket') i++;
    else if (!argv[i]?.startsWith('-')) return i;
  }
  return -1;
};

/** Where the words of `exec` (or `execs run`, or `run`) begin, or -1. */
const execWords = (argv: readonly string[], first: number): number => {
  if (argv[first] === 'exec' || argv[first] === 'run') return first + 1;
  return argv[first] === 'execs' && argv[first + 1] === 'run' ? first + 2 : -1;
};

const execCommandOf = (program: Command, word: string | undefined): Command | undefined =>
  program.commands.find(c => c.name() === (word === 'run' ? 'run' : 'exec')) ??
  program.commands.find(c => c.name() === 'execs')?.commands.find(c => c.name() === 'run');

/** Runs one command and gives its exit code. */
export const main = async (argv: readonly string[]): Promise<number> => {
  const first = firstWord(argv);
  if (argv[first] === '__complete') return (await import('./completion.ts')).complete(argv.slice(first + 1));
  const cli = makeCli();
  const program = makeProgram(cli, argv[first]);
  const start = execWords(argv, first);
  try {
    const command = start < 0 ? undefined : execCommandOf(program, argv[first]);
    const takesValue = (flag: string) =>
      command?.options.some(o => o.required && (o.short === flag || o.long === flag)) ?? false;
    const words = start < 0 ? argv : [...argv.slice(0, start), ...splitCommand(argv.slice(start), takesValue)];
    await program.parseAsync([...words], { from: 'user' });
    return cli.code;
  } catch (error) {
    if (!(error instanceof CommanderError)) return fail(cli, error);
    const help = error.code === 'commander.helpDisplayed' || error.code === 'commander.version';
    return help ? 0 : start < 0 ? 2 : EXIT_NEXUS; // commander has said what is wrong
  } finally {
    await cli.close();
  }
};
