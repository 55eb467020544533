/** Streams that are lines: consoles, events, the logs of jobs. */
import type { EventMessage } from '../api/event.ts';
import type { FsWatchMessage } from '../api/fs.ts';
import type { JobMessage } from '../api/job.ts';
import type { VmLogMessage } from '../api/vm_watch.ts';
import { checkJob } from '../client/job.ts';
import { plain } from '../lib/text.ts';
import { type Cli, note, out } from './cli.ts';
import { attachCommand } from './exec.ts';
import { listFiles } from './fs.ts';
import { cell, json, timeText } from './show.ts';
import { showTop } from './top.ts';

const logLine = (message: VmLogMessage): void => {
  if (message.type === 'line') out(`${plain(message.line)}\n`);
  if (message.type === 'gap') note(`-- ${plain(message.detail)} --\n`);
};

const jobLine = (message: JobMessage): void => {
  if (message.type === 'log') out(`${plain(message.line)}\n`);
  if (message.type === 'gap') note(`-- ${cell('bytes', message.bytes)} of log were dropped --\n`);
  if (message.type === 'end') checkJob(message.job);
};

/** What was said until now: how it ended is no matter of this command. */
const buildLine = (message: JobMessage): void => {
  if (message.type !== 'end') jobLine(message);
};

const eventLine = (message: EventMessage): void => {
  if (!('seq' in message)) note(`-- ${message.missed} events were dropped --\n`);
  else
    out(
      `${timeText(message.at_ms)}  ${plain(message.type)}  ${plain(message.subject)}  ${cell('data', message.data)}\n`,
    );
};

const changeLine = (message: FsWatchMessage): void => {
  if (message.type === 'overflow') note('-- changes were lost here --\n');
  else if (message.type === 'watching') note(`Watching ${plain(message.path)}.\n`);
  else {
    const to = message.type === 'moved' ? ` -> ${message.new_path}` : '';
    out(`${message.type.padEnd(7)}  ${plain(`${message.path}${to}`)}${message.directory ? '/' : ''}\n`);
  }
};

type Show = (cli: Cli, input: Record<string, unknown>) => Promise<void>;

const each = async <T>(cli: Cli, messages: AsyncIterable<T>, line: (message: T) => void): Promise<void> => {
  for await (const message of messages) {
    if (cli.json) out(json(message, 0));
    else line(message);
  }
};

const text = (value: unknown): string => String(value);

/** How each streaming operation is shown; `exec.run` has a command of its own. */
export const STREAMS: Record<string, Show> = {
  'vm.hold': (cli, { vm }) => each(cli, cli.nexus.vm.hold({ vm: text(vm) }), () => note('Held until this ends.\n')),
  'vm.logs': (cli, { vm, ...rest }) => each(cli, cli.nexus.vm.logs({ vm: text(vm), ...rest }), logLine),
  'vm.top': (cli, input) => showTop(cli, cli.nexus.vm.top(input)),
  'job.log': (cli, { job }) => each(cli, cli.nexus.job.log({ job: text(job) }), jobLine),
  'build.logs': (cli, { build, ...rest }) =>
    each(cli, cli.nexus.build.logs({ build: text(build), ...rest }), rest.follow === true ? jobLine : buildLine),
  'exec.attach': attachCommand,
  'fs.list': (cli, { vm, path }) => listFiles(cli, cli.nexus.fs.list({ vm: text(vm), path: text(path) })),
  'port.open': async (cli, { vm, port, host }) =>
    (await import('./port.ts')).portPipe(
      cli,
      text(vm),
      Number(port),
      host === '::1' || host === '127.0.0.1' ? host : undefined,
    ),
  'terminal.open': async (cli, input) => (await import('./terminal.ts')).attachTerminal(cli, input),
  'fs.watch': (cli, { vm, path, ...rest }) =>
    each(cli, cli.nexus.fs.watch({ vm: text(vm), path: text(path), ...rest }), changeLine),
  'event.watch': (cli, input) => each(cli, cli.nexus.event.watch(input), eventLine),
};
