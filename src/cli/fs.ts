/** Files of a VM on the command line. */
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import type { FsEntry, FsListMessage } from '../api/fs.ts';
import { formatBytes } from '../lib/size.ts';
import { plain } from '../lib/text.ts';
import { type Cli, note, out, outBytes } from './cli.ts';
import { aligned, json, timeText } from './show.ts';

/** A list up to this long is sorted; a longer one is shown as it comes. */
const SORTED = 10_000;

const cells = (e: FsEntry): string[] => [
  e.type,
  e.mode,
  `${e.uid}:${e.gid}`,
  e.type === 'file' ? formatBytes(e.size_bytes) : '-',
  timeText(e.modified_at_ms),
  e.target === null ? e.name : `${e.name} -> ${e.target}`,
];

const byName = (a: FsEntry, b: FsEntry): number => (a.name < b.name ? -1 : 1);

/** A directory as a table. */
export const listFiles = async (cli: Cli, messages: AsyncIterable<FsListMessage>): Promise<void> => {
  let held: FsEntry[] = [];
  const show = () => {
    if (held.length > 0) out(aligned(held.sort(byName).map(cells)));
    held = [];
  };
  for await (const { entry } of messages) {
    if (cli.json) out(json(entry, 0));
    else held.push(entry);
    if (held.length >= SORTED) show();
  }
  show();
};

/** The bytes of a download, as they are. */
const print = async (file: AsyncIterable<Buffer>): Promise<void> => {
  for await (const chunk of file) await outBytes(chunk);
};

/** The bytes of a file, as they are. */
export const readFile = async (cli: Cli, input: Record<string, unknown>): Promise<void> => {
  const { vm, path, ...range } = input;
  using file = await cli.nexus.fs.read({ vm: String(vm), path: String(path), ...range });
  await print(file);
};

/** A directory as a tar archive. */
export const exportTree = async (cli: Cli, input: Record<string, unknown>): Promise<void> => {
  if (process.stdout.isTTY === true)
    throw new Fault('invalid', 'Cannot print an archive on a terminal.', { hint: 'nexusctl cp VM:PATH PATH' });
  const { vm, path, ...rest } = input;
  using tree = await cli.nexus.fs.export({ vm: String(vm), path: String(path), ...rest });
  await print(tree);
};

/** What comes on standard input becomes a file. */
export const writeFile = async (cli: Cli, input: Record<string, unknown>): Promise<void> => {
  const { vm, path, ...options } = input;
  const args = { vm: String(vm), path: String(path), ...options };
  const written = await cli.nexus.fs.write(args, { body: process.stdin });
  if (cli.json) out(json(written));
  else note(`Wrote ${formatBytes(written.bytes)}: file '${plain(args.path)}'.\n`);
};
