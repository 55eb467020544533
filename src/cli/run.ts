/** Runs one operation from the command line and shows its answer. */
import process from 'node:process';
import type { Row } from '../api/derive.ts';
import type { Job } from '../api/job.ts';
import { plain } from '../lib/text.ts';
import { agreed, type Cli, note, onTerminal, out } from './cli.ts';
import { inputOf } from './flags.ts';
import { jobStarted } from './job.ts';
import { cell, details, json, table } from './show.ts';
import { STREAMS } from './stream.ts';
import { VIEWS } from './views.ts';
import { DESTRUCTIVE, LISTS, NOUNS, PAST } from './words.ts';

const split = (row: Row): [noun: string, verb: string] => {
  const [noun = '', verb = ''] = row.name.split('.');
  return [noun, verb];
};

/** VM 'web'; the daemon, where there is nothing to name. */
const subject = (row: Row, input: Record<string, unknown>): string => {
  const [noun] = split(row);
  const one = NOUNS[noun]?.[0] ?? noun;
  const key = row.args[0];
  return key === undefined ? `the ${one}` : `${one} '${cell(key, input[noun] ?? input.path ?? input[key])}'`;
};

const confirmed = (row: Row, input: Record<string, unknown>): Promise<void> =>
  agreed(`${split(row)[1] === 'delete' ? 'Delete' : 'Remove'} ${subject(row, input)}?`);

const isJob = (value: unknown): value is Job =>
  typeof value === 'object' && value !== null && 'id' in value && 'kind' in value && 'state' in value;

const showAnswer = (cli: Cli, row: Row, input: Record<string, unknown>, answer: unknown): void => {
  const [noun, verb] = split(row);
  if (cli.json) out(json(answer));
  else if (row.answers === 'nothing') note(`${PAST[verb] ?? 'Done'}: ${subject(row, input)}.\n`);
  else if (Array.isArray(answer) && answer.length === 0) out(`No ${LISTS[row.name] ?? NOUNS[noun]?.[1] ?? noun}.\n`);
  else if (Array.isArray(answer)) out(table(row.columns, answer));
  else if (typeof answer === 'object' && answer !== null) showObject({ ...answer });
};

/** What the daemon wants people to know stands beside the answer. */
const showObject = ({ notice, ...rest }: Record<string, unknown>): void => {
  out(details(rest));
  if (typeof notice === 'string') note(`note: ${plain(notice)}\n`);
};

/** One operation: ask where it destroys, call, follow a job or stream, show what came back. */
export const runRow = async (
  cli: Cli,
  row: Row,
  positionals: readonly unknown[],
  options: Record<string, unknown>,
): Promise<void> => {
  const input = inputOf(row, positionals, options);
  const stream = STREAMS[row.name];
  if (stream !== undefined) return stream(cli, input);
  const view = VIEWS[row.name];
  if (view !== undefined) return view(cli, input, options);
  if (DESTRUCTIVE.includes(split(row)[1]) && options.yes !== true && onTerminal()) await confirmed(row, input);
  const answer = await cli.nexus.call(row.name, input, row.stream === 'upload' ? { body: process.stdin } : {});
  if (row.answers === 'job' && isJob(answer)) return jobStarted(cli, answer, options.detach === true);
  showAnswer(cli, row, input, answer);
};
