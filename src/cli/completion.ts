/** The words that fit, for the shells' completion scripts. */
import type { Command } from 'commander';
import type { Row } from '../api/derive.ts';
import { type Cli, makeCli, out } from './cli.ts';
import { makeProgram, nounOf, rowNamed, rowsOf, wordOf } from './program.ts';

/** How long the daemon may take to name its things before the shell goes without. */
const ASK_MS = 1000;

/** Commands by hand that stand for an operation. */
const BY_HAND: Record<string, string> = {
  exec: 'exec.run',
  attach: 'terminal.open',
  port: 'port.open',
  logs: 'vm.logs',
  events: 'event.watch',
  status: 'daemon.get',
};

/** field that is a reference -> what names it in a list of its noun */
const REFERENCES: Record<string, string> = {
  vm: 'name',
  image: 'name',
  ws: 'name',
  kernel: 'version',
  rootfs: 'id',
  firecracker: 'version',
  provider: 'name',
  job: 'id',
};

const namesOf = async (cli: Cli, noun: string): Promise<string[]> => {
  const key = REFERENCES[noun];
  if (key === undefined) return [];
  try {
    const list = await cli.nexus.call(`${noun}.list`, {}, { signal: AbortSignal.timeout(ASK_MS) });
    if (!Array.isArray(list)) return [];
    return list.map(item => String(Reflect.get(Object(item), key)));
  } catch {
    return []; // no daemon, no names
  }
};

const rowOf = (noun: string | undefined, words: readonly string[]): Row | undefined => {
  if (noun === undefined) {
    const name = BY_HAND[words[0] ?? ''];
    return name === undefined ? undefined : rowNamed(name);
  }
  return rowsOf(noun).find(row => wordOf(row) === words[1]);
};

/** The value of the flag before, if it takes one. */
const valuesOf = async (cli: Cli, command: Command, flag: string): Promise<string[] | undefined> => {
  const option = command.options.find(o => o.required && (o.short === flag || o.long === flag));
  if (option === undefined) return undefined;
  return option.argChoices ?? (await namesOf(cli, option.attributeName()));
};

const candidates = async (cli: Cli, words: readonly string[], last: string): Promise<string[]> => {
  const socket = words.indexOf('--socket');
  if (socket >= 0) cli.socket = words[socket + 1];
  const program = makeProgram(cli, words[0]);
  const visible = (commands: readonly Command[]) => commands.map(c => c.name());
  if (words.length === 0) return visible(makeProgram(cli, undefined).commands);
  const parent = program.commands.find(c => c.name() === words[0] || c.aliases().includes(words[0] ?? ''));
  if (parent === undefined) return [];
  const noun = nounOf(words[0] ?? '');
  if (noun !== undefined && words.length === 1) return visible(parent.commands);
  const command =
    noun === undefined
      ? parent
      : parent.commands.find(c => c.name() === words[1] || c.aliases().includes(words[1] ?? ''));
  if (command === undefined) return [];
  const before = await valuesOf(cli, command, words.at(-1) ?? '');
  if (before !== undefined) return before;
  if (last.startsWith('-')) return command.options.filter(o => !o.hidden).map(o => o.long ?? o.flags);
  const row = rowOf(noun, [words[0] ?? '', command.name()]);
  const given = words.slice(noun === undefined ? 1 : 2).filter(w => !w.startsWith('-')).length;
  const field = row?.fields.find(f => f.name === row.args[given]?.replace('...', ''));
  return [...(field?.choices ?? (field === undefined ? [] : await namesOf(cli, field.name)))];
};

/** Prints the words that fit after `words`, the last of which is being typed. */
export const complete = async (words: readonly string[]): Promise<number> => {
  const cli = makeCli();
  const last = words.at(-1) ?? '';
  try {
    const found = await candidates(cli, words.slice(0, -1), last);
    out(
      found
        .filter(word => word.startsWith(last))
        .map(word => `${word}\n`)
        .join(''),
    );
    return 0;
  } finally {
    await cli.close();
  }
};
