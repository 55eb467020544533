/** A file system that somebody else made: whether it is one, and what is in it. It is read by e2fsck and debugfs alone, and never written. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { InitMode } from '../api/image.ts';
import { runAny } from '../lib/proc.ts';
import { plain } from '../lib/text.ts';
import { prettyName } from './facts.ts';
import { findTools, type Tools } from './tools.ts';

export interface Foreign {
  os: string;
  init: InitMode;
  arch: Arch | undefined;
  /** Null: it has no agent. */
  agent_version: string | null;
}

interface Options {
  /** For a small trial file. */
  dir: string;
  env: Record<string, string>;
  signal: AbortSignal;
  onLog?: (line: string) => void;
}

/** Of the superblock, 1024 bytes from the start (the kernel's Documentation/filesystems/ext4/super.rst). */
const MAGIC_AT = 1024 + 0x38;
const MAGIC = 0xef53;
/** What a VMM cannot read in parts. */
const SECTOR = 512;
/** A large file system on a slow disk. */
const CHECK_MS = 3_600_000;
const MAX_TEXT = 64 * 1024;

/** Throws `invalid` unless the file begins like an ext file system. */
export const looksLikeExt4 = async (path: string): Promise<void> => {
  const cannot = (why: string, hint?: string, cause?: unknown) =>
    new Fault('invalid', `Cannot import ${plain(path)}: ${why}.`, { hint, cause });
  await using handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(
    (cause: NodeJS.ErrnoException) => {
      throw cannot(cause.code === 'ENOENT' ? 'it is not there' : `it cannot be read: ${cause.code}`, undefined, cause);
    },
  );
  const stat = await handle.stat();
  if (!stat.isFile()) throw cannot('it is no file');
  if (stat.size % SECTOR !== 0)
    throw cannot(`no disk has ${stat.size} bytes: a sector has ${SECTOR}`, `truncate -s %4096 ${plain(path)}`);
  const magic = Buffer.alloc(2);
  await handle.read(magic, 0, 2, MAGIC_AT);
  if (magic.readUInt16LE() !== MAGIC) throw cannot('no ext4 file system begins at its first byte');
};

/** What debugfs says. */
const ask = async (tools: Tools, request: string, image: string, signal: AbortSignal): Promise<string> =>
  (await runAny([tools.debugfs, '-R', request, image], { env: tools.env, signal })).stdout;

const has = async (tools: Tools, image: string, path: string, signal: AbortSignal): Promise<boolean> =>
  /^Inode:/m.test(await ask(tools, `stat ${path}`, image, signal));

/** A small file as text; empty where there is none. */
const textOf = async (tools: Tools, image: string, path: string, signal: AbortSignal): Promise<string> => {
  const stat = await ask(tools, `stat ${path}`, image, signal);
  const size = Number(/\bSize: (\d+)/.exec(stat)?.[1] ?? MAX_TEXT);
  return /Type: regular/.test(stat) && size < MAX_TEXT ? ask(tools, `cat ${path}`, image, signal) : '';
};

/** A value of the label: `key: JSON`. */
const labelled = (label: string, key: string): unknown => {
  const text = label
    .split('\n')
    .find(line => line.startsWith(`${key}: `))
    ?.slice(key.length + 2);
  try {
    return text === undefined ? undefined : JSON.parse(text);
  } catch {
    return undefined;
  }
};

const initOf = async (
  tools: Tools,
  image: string,
  label: string,
  agent: boolean,
  signal: AbortSignal,
): Promise<InitMode> => {
  const told = InitMode.safeParse(labelled(label, 'init'));
  if (told.success) return told.data;
  for (const dir of ['/usr/lib', '/lib'])
    if (await has(tools, image, `${dir}/systemd/systemd`, signal)) return 'systemd';
  if (await has(tools, image, '/sbin/openrc', signal)) return 'openrc';
  // whatever its init is: it is started as one of the image
  return !agent && (await has(tools, image, '/sbin/init', signal)) ? 'busybox' : 'agent';
};

/** Checks the whole file system and looks what is in it. */
export const examine = async (image: string, options: Options): Promise<Foreign> => {
  const { dir, env, signal, onLog } = options;
  const tools = await findTools({ env }, dir, signal);
  const checked = await runAny([tools.e2fsck, '-f', '-n', image], { env: tools.env, signal, timeout_ms: CHECK_MS });
  if (checked.code !== 0) {
    for (const line of checked.stdout.split('\n').slice(-20)) onLog?.(plain(line));
    throw new Fault('invalid', 'Cannot import that file system: e2fsck finds it damaged.', {
      hint: 'repair it with e2fsck -f, then import it again',
    });
  }
  const label = await textOf(tools, image, '/etc/nexus/image.yaml', signal);
  const agent = await has(tools, image, '/usr/lib/nexus/nexus-agent', signal);
  // the one in /etc is a link, as a rule
  const [own, usual] = [
    await textOf(tools, image, '/etc/os-release', signal),
    await textOf(tools, image, '/usr/lib/os-release', signal),
  ];
  const version = labelled(label, 'agent_version');
  return {
    os: prettyName(own || usual) ?? 'Linux',
    init: await initOf(tools, image, label, agent, signal),
    arch: Arch.safeParse(labelled(label, 'arch')).data,
    agent_version: agent ? plain(typeof version === 'string' ? version : 'unknown').slice(0, 100) : null,
  };
};
