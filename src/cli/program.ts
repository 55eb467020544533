/** The tree of commands: derived from the contract, plus those that are made by hand. Only what is asked for is built. */
import { Command, Option } from 'commander';
import type { Row } from '../api/derive.ts';
import { TABLE } from '../api/table.ts';
import type { Cli } from './cli.ts';
import { addInputs, camel, inputOf, kebab } from './flags.ts';
import { runRow } from './run.ts';
import { runInputs } from './run_inputs.ts';
import { DESTRUCTIVE, NOUN_ALIASES, NOUNS, VERB_ALIASES } from './words.ts';

/** Commands by hand of these names; so the nouns are called by their plurals. */
const PLURALS = ['exec', 'port'];
export const commandNoun = (noun: string): string => (PLURALS.includes(noun) ? `${noun}s` : noun);
export const nounOf = (word: string): string | undefined =>
  Object.keys(NOUNS).find(noun => commandNoun(noun) === word) ?? NOUN_ALIASES[word];

const nounIn = (row: Row): string => row.name.split('.')[0] ?? '';
const verbOf = (row: Row): string => row.name.split('.')[1] ?? '';

/** The word of an operation: set_default is set-default. */
export const wordOf = (row: Row): string => kebab(verbOf(row));

/** The operations of a noun that have a command of their own. */
export const rowsOf = (noun: string): Row[] =>
  Object.values(TABLE).filter(row => nounIn(row) === noun && row.by_flag === undefined);

export const rowNamed = (name: string): Row => {
  const row = TABLE[name];
  if (row === undefined) throw new Error(`the contract has no ${name}`);
  return row;
};

/** --json and --socket are taken anywhere on the line. */
const addGlobals = (command: Command): Command =>
  command
    .addOption(new Option('--json', 'print JSON'))
    .addOption(new Option('--socket <path>', "the daemon's socket (default: $NEXUS_SOCKET, else the usual places)"));

type Action = (positionals: unknown[], options: Record<string, unknown>) => Promise<void>;

/** commander hands an action its positionals, its options and itself. */
const acts = (cli: Cli, command: Command, action: Action): void => {
  command.action(async (...all: unknown[]) => {
    const options: Record<string, unknown> = command.optsWithGlobals();
    cli.json = options.json === true;
    cli.socket = typeof options.socket === 'string' ? options.socket : undefined;
    await action(all.slice(0, -2), options);
  });
};

/** A leaf: one operation with its flags. */
const leaf = (cli: Cli, parent: Command, name: string, row: Row): Command => {
  const command = parent.command(name).summary(row.summary).description(`${row.summary}.`);
  command.showHelpAfterError(`hint: nexusctl ${parent.parent === null ? '' : `${parent.name()} `}${name} --help`);
  addInputs(command, row);
  if (row.answers === 'job') command.option('-d, --detach', 'print the ID of the job and do not follow it');
  if (DESTRUCTIVE.includes(verbOf(row))) command.option('-y, --yes', 'do not ask');
  addGlobals(command);
  const other = Object.values(TABLE).find(
    one => one.by_flag && nounIn(one) === nounIn(row) && one.by_flag.verb === verbOf(row),
  );
  if (other?.by_flag !== undefined) command.option(`--${other.by_flag.flag}`, other.summary);
  acts(cli, command, (positionals, options) => {
    const flag = other?.by_flag?.flag;
    return runRow(
      cli,
      other !== undefined && flag !== undefined && options[camel(flag)] === true ? other : row,
      positionals,
      options,
    );
  });
  return command;
};

const execLeaf = (cli: Cli, parent: Command, name: string): Command => {
  const row = rowNamed('exec.run');
  const command = parent.command(name).summary('Run a command in a VM');
  command
    .description(
      'Run a command in a VM. Its output comes through byte for byte and its exit code is ours;\n125: Nexus failed, 126: the command cannot be run, 127: there is no such program, 128+n: signal n ended it.',
    )
    .usage('[options] VM [--] COMMAND [ARG...]')
    .showHelpAfterError('hint: nexusctl exec --help')
    .option('-i, --interactive', 'pass standard input to the command')
    .option('-t, --tty', 'give the command a terminal; with -i it is this one');
  addInputs(command, row, ['stdin', 'tty']);
  addGlobals(command);
  acts(cli, command, async (positionals, options) => {
    const { execCommand } = await import('./exec.ts');
    const way = { interactive: options.interactive === true, tty: options.tty === true };
    await execCommand(cli, inputOf(row, positionals, options), way);
  });
  return command;
};

const portLeaf = (cli: Cli, program: Command): void => {
  const command = program
    .command('port')
    .summary("Make ports of a VM this host's")
    .description(
      'Listen here and pass each connection on to a port of the VM, until Ctrl-C. 3000:8080: port 3000 here is 8080 there;\n8080: the same; :8080: any free one, which is printed.',
    )
    .argument('<VM>', 'name or ID')
    .argument('<HOST:GUEST...>')
    .option('--address <address>', 'where to listen', '127.0.0.1')
    .showHelpAfterError('hint: nexusctl port --help');
  acts(cli, addGlobals(command), async ([vm, pairs], { address }) => {
    const { portCommand } = await import('./port.ts');
    await portCommand(cli, String(vm), Array.isArray(pairs) ? pairs.map(String) : [], String(address));
  });
};

const addNoun = (cli: Cli, program: Command, noun: string, whole: boolean): void => {
  const several = NOUNS[noun]?.[1] ?? noun;
  const rows = rowsOf(noun);
  const verbs = rows.map(wordOf);
  const parent = program.command(commandNoun(noun)).summary(`${several}: ${verbs.join(', ')}`);
  parent
    .description(`Work with ${noun === 'daemon' ? 'the daemon' : several}.`)
    .showHelpAfterError(`hint: nexusctl ${commandNoun(noun)} --help`)
    .helpCommand(false);
  for (const [alias, to] of Object.entries(NOUN_ALIASES)) if (to === noun && alias !== noun) parent.alias(alias);
  if (!whole) return;
  for (const row of rows) {
    const verb = wordOf(row);
    const command = row.name === 'exec.run' ? execLeaf(cli, parent, verb) : leaf(cli, parent, verb, row);
    const alias = VERB_ALIASES[verb];
    if (alias !== undefined) command.alias(alias);
  }
};

const addDemo = (cli: Cli, program: Command): void => {
  const command = program
    .command('demo')
    .summary('Boot a VM and run commands in it, step by step')
    .description('Start a private daemon, fetch what a VM needs, boot one, run commands in it, and clean up.')
    .option('--keep', 'leave the daemon and the VM running')
    .option('--data-dir <dir>', 'where everything lies (default: /var/lib/nexus-demo, ~/.local/share/nexus-demo)');
  acts(cli, command, async (_positionals, options) => {
    const { demo } = await import('./demo.ts');
    await demo(cli, {
      keep: options.keep === true,
      data_dir: typeof options.dataDir === 'string' ? options.dataDir : undefined,
    });
  });
};

const addCp = (cli: Cli, program: Command): void => {
  const command = addGlobals(program.command('cp'))
    .summary('Copy files and directories into a VM and out of it')
    .description(
      'Copy files and directories into a VM and out of it; one of both is VM:PATH. A directory that is there is copied into.\nA name of - is standard input or output; for a directory in the VM it holds a tar archive.',
    )
    .usage('[options] SRC DST')
    .showHelpAfterError('hint: nexusctl cp --help')
    .argument('<SRC>', 'VM:PATH, a path of this host, or -; SRC/. is what is in SRC')
    .argument('<DST>', 'VM:PATH, a path of this host, or -')
    .option('-a, --archive', 'keep owners, set-uid and extended attributes, and as root device nodes');
  acts(cli, command, async ([from, to], options) => {
    const { cpCommand } = await import('./cp.ts');
    await cpCommand(cli, String(from), String(to), options.archive === true);
  });
};

const addRun = (cli: Cli, program: Command): void => {
  const row = runInputs(rowNamed('exec.run'), rowNamed('vm.create'));
  const command = program.command('run').summary(row.summary);
  command
    .description(
      'Run a command in a VM that is made for it, and deleted with its disk when the command has ended.\nThe image is downloaded and built where it is missing. Exit codes are those of exec.',
    )
    .usage('[options] IMAGE [--] COMMAND [ARG...]')
    .showHelpAfterError('hint: nexusctl run --help')
    .option('-i, --interactive', 'pass standard input to the command')
    .option('-t, --tty', 'give the command a terminal; with -i it is this one');
  addInputs(command, row);
  addGlobals(command);
  acts(cli, command, async (positionals, options) => {
    const { runOnce } = await import('./run_once.ts');
    const way = { interactive: options.interactive === true, tty: options.tty === true };
    await runOnce(cli, inputOf(row, positionals, options), way);
  });
};

const addByHand = (cli: Cli, program: Command): void => {
  execLeaf(cli, program, 'exec');
  addRun(cli, program);
  leaf(cli, program, 'attach', rowNamed('terminal.open'));
  addCp(cli, program);
  portLeaf(cli, program);
  leaf(cli, program, 'up', rowNamed('vm.up'));
  leaf(cli, program, 'logs', rowNamed('vm.logs'));
  leaf(cli, program, 'top', rowNamed('vm.top'));
  leaf(cli, program, 'events', rowNamed('event.watch'));
  leaf(cli, program, 'status', rowNamed('daemon.get'));
  leaf(cli, program, 'doctor', rowNamed('daemon.doctor'));
  leaf(cli, program, 'gc', rowNamed('daemon.gc'));
  const mcp = addGlobals(program.command('mcp')).summary(
    'Offer the operations to an agent as MCP tools, on stdin and stdout',
  );
  acts(cli, mcp, async () => (await import('./mcp.ts')).mcpCommand(cli));
  const version = addGlobals(program.command('version')).summary('Show the versions of client and daemon');
  acts(cli, version, async () => (await import('./version.ts')).showVersion(cli));
  const completion = program.command('completion').summary('Print a completion script for a shell');
  completion.argument('<SHELL>', 'bash, zsh or fish');
  acts(cli, completion, async ([shell]) => (await import('./shells.ts')).printScript(String(shell)));
  addDemo(cli, program);
};

/** The whole tree, or only the branch of the noun `word`. */
export const makeProgram = (cli: Cli, word: string | undefined): Command => {
  const program = addGlobals(new Command('nexusctl'))
    .description('Every AI agent in its own microVM.')
    .exitOverride()
    .showHelpAfterError('hint: nexusctl --help')
    .helpCommand(false)
    .addHelpText('after', '\nnexusctl <command> --help says more. Environment: NEXUS_SOCKET.');
  const noun = word === undefined ? undefined : nounOf(word);
  if (noun !== undefined) {
    addNoun(cli, program, noun, true);
    return program;
  }
  program.commandsGroup('Commands:');
  addByHand(cli, program);
  program.commandsGroup('Nouns:');
  for (const name of Object.keys(NOUNS)) addNoun(cli, program, name, false);
  return program;
};
