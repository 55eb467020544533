/**
 * A VM for as long as a scope lasts: made, started, and deleted at its end.
 *
 * INVARIANTS: the VM is ephemeral. As long as this process lives and has not deleted it, it is held; a hold that is lost with its
 * daemon is asked for again. So a process that is killed leaves no VM either.
 */
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { Fault } from '../api/fault.ts';
import type { FsEntry, FsWatchMessage } from '../api/fs.ts';
import type { OpArgs, OpOut } from '../api/ops.ts';
import type { TerminalMessage, TerminalSay } from '../api/terminal.ts';
import type { CallOptions, Verbs } from './calls.ts';
import { Command, type Exec, type ExecOptions } from './command.ts';
import type { Talk } from './raw_talk.ts';

/** What a machine needs of a `Nexus`. */
export interface MachineCalls {
  readonly vm: Verbs<'vm'>;
  readonly exec: Verbs<'exec'>;
  readonly fs: Verbs<'fs'>;
  readonly terminal: Verbs<'terminal'>;
}

export interface MachineOptions extends Omit<OpArgs<'vm.create'>, 'name' | 'ephemeral'>, CallOptions {
  /** Default: one that nobody has. */
  name?: string | undefined;
  /** How long its guest may take to answer. */
  timeout_ms?: number | undefined;
}

/** An operation on one file, without the words for VM and path. */
type On<N extends 'fs.stat' | 'fs.write' | 'fs.remove' | 'fs.mkdir' | 'fs.rename' | 'fs.chmod' | 'fs.watch'> = Omit<
  OpArgs<N>,
  'vm' | 'path' | 'new_path'
>;

/** The files of a machine. Paths are absolute, and its own. */
export interface MachineFiles {
  /** The whole file, in memory. */
  readFile(path: string): Promise<Buffer>;
  readFile(path: string, encoding: BufferEncoding): Promise<string>;
  /** Whole or not at all, if it is neither `append` nor at an offset. */
  writeFile(path: string, data: string | Uint8Array | Readable, options?: On<'fs.write'>): Promise<FsEntry>;
  stat(path: string, options?: On<'fs.stat'>): Promise<FsEntry>;
  list(path: string): Promise<FsEntry[]>;
  remove(path: string, options?: On<'fs.remove'>): Promise<void>;
  mkdir(path: string, options?: On<'fs.mkdir'>): Promise<void>;
  rename(path: string, new_path: string, options?: On<'fs.rename'>): Promise<void>;
  chmod(path: string, change: string | On<'fs.chmod'>): Promise<void>;
  watch(path: string, options?: On<'fs.watch'> & CallOptions): AsyncGenerator<FsWatchMessage, void>;
}

export type TerminalOptions = Omit<OpArgs<'terminal.open'>, 'vm'> & CallOptions;

export interface Machine extends AsyncDisposable {
  readonly id: string;
  readonly name: string;
  /** As it was when its guest had answered. */
  readonly vm: OpOut<'vm.start'>;
  readonly fs: MachineFiles;
  /** Runs a command: `await` gives its end and output, a `for await` loop what it writes, as it comes. */
  exec(argv: readonly string[], options?: ExecOptions): Exec;
  terminal(options?: TerminalOptions): Promise<Talk<TerminalMessage, TerminalSay>>;
  /** What the end of the scope does. Once more does no harm. */
  delete(): Promise<void>;
}

const filesOf = ({ fs }: MachineCalls, vm: string): MachineFiles => {
  async function readFile(path: string): Promise<Buffer>;
  async function readFile(path: string, encoding: BufferEncoding): Promise<string>;
  async function readFile(path: string, encoding?: BufferEncoding): Promise<Buffer | string> {
    const bytes = Buffer.concat(await Array.fromAsync(await fs.read({ vm, path })));
    return encoding === undefined ? bytes : bytes.toString(encoding);
  }
  return {
    readFile,
    writeFile: async (path, data, options) => {
      const body = typeof data === 'string' ? Buffer.from(data) : data;
      return (await fs.write({ vm, path, ...options }, { body })).entry;
    },
    stat: (path, options) => fs.stat({ vm, path, ...options }),
    list: path => Array.fromAsync(fs.list({ vm, path }), message => message.entry),
    remove: async (path, options) => void (await fs.remove({ vm, path, ...options })),
    mkdir: async (path, options) => void (await fs.mkdir({ vm, path, ...options })),
    rename: async (path, new_path, options) => void (await fs.rename({ vm, path, new_path, ...options })),
    chmod: async (path, change) =>
      void (await fs.chmod({ vm, path, ...(typeof change === 'string' ? { mode: change } : change) })),
    watch: (path, { signal, ...options } = {}) => fs.watch({ vm, path, ...options }, { signal }),
  };
};

const remove = async ({ vm }: MachineCalls, id: string): Promise<void> => {
  try {
    await vm.delete({ vm: id });
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'not_found')) throw error;
  }
};

/** How long until a hold is asked for again. */
const AGAIN_MS = 500;

/** Holds it until disposed of. Resolves when it is held. */
const hold = async ({ vm }: MachineCalls, id: string): Promise<Disposable> => {
  const over = new AbortController();
  const { signal } = over;
  const held = Promise.withResolvers<void>();
  const holding = async () => {
    while (!signal.aborted) {
      try {
        for await (const _ of vm.hold({ vm: id }, { signal, unref: true })) held.resolve();
        // the VM is gone: a daemon that ends cuts the stream
        return held.reject(new Fault('not_found', `VM '${id}' was deleted.`));
      } catch (error) {
        held.reject(error);
        if (error instanceof Fault && error.code === 'not_found') return;
      }
      await sleep(AGAIN_MS, undefined, { signal, ref: false }).catch(() => {});
    }
  };
  void holding();
  try {
    await held.promise;
  } catch (error) {
    over.abort();
    throw error;
  }
  return { [Symbol.dispose]: () => over.abort() };
};

const machineOf = (calls: MachineCalls, vm: OpOut<'vm.start'>, held: Disposable): Machine => {
  const { id, name } = vm;
  const end = async () => {
    await remove(calls, id);
    held[Symbol.dispose]();
  };
  return {
    id,
    name,
    vm,
    fs: filesOf(calls, id),
    exec: (argv, options = {}) => new Command(calls.exec, id, argv, options),
    terminal: ({ signal, ...options } = {}) => calls.terminal.open({ vm: id, ...options }, { signal }),
    delete: end,
    [Symbol.asyncDispose]: end,
  };
};

/** A name for what is not there for long. */
export const freshName = (stem: string): string => `${stem}-${crypto.randomUUID().slice(0, 13)}`;

/** Gives a machine whose guest has answered. Where that fails, nothing is left. */
export const openMachine = async (calls: MachineCalls, options: MachineOptions): Promise<Machine> => {
  const { name = freshName('box'), timeout_ms, signal, ...chosen } = options;
  signal?.throwIfAborted();
  const { id } = await calls.vm.create({ name, ...chosen, ephemeral: true }); // not aborted: its ID is needed
  let held: Disposable | undefined;
  try {
    held = await hold(calls, id);
    return machineOf(calls, await calls.vm.start({ vm: id, timeout_ms }, { signal }), held);
  } catch (error) {
    await remove(calls, id)
      .catch((later: unknown) => {
        throw new SuppressedError(later, error, `VM '${name}' could not be started, nor deleted at once.`);
      })
      .finally(() => held?.[Symbol.dispose]());
    throw error;
  }
};
