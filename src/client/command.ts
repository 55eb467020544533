/**
 * A command in a machine: one call is one command, whichever way it is read.
 *
 * INVARIANTS: the command is asked for when the call is made, once. Whoever reads first, by `await` or by a loop, reads the only
 * stream; what went through a loop is gathered, too. An abort, and a standard input that cannot be fed, send signals to the
 * command and wait for its end: TERM, then KILL; only a command that outlives both is left. Leaving a loop ends nothing.
 */
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecMessage, Signal } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import type { OpArgs } from '../api/ops.ts';
import type { Verbs } from './calls.ts';
import { cutShort, type ExecResult, gather } from './exec.ts';

export interface ExecOptions extends Omit<OpArgs<'exec.run'>, 'vm' | 'argv' | 'stdin'> {
  /** Its standard input; without it /dev/null. */
  stdin?: string | Uint8Array | Readable | undefined;
  /** So much of each channel is in the result: 16 MiB by default. */
  max_bytes?: number | undefined;
  /** Aborting ends the command, and rejects with the reason of the abort when it has ended. */
  signal?: AbortSignal | undefined;
}

/** As the messages of `exec.run`, with bytes that are bytes. */
export type ExecEvent =
  | Exclude<ExecMessage, { type: 'stdout' | 'stderr' }>
  | { type: 'stdout' | 'stderr'; data: Buffer };

export interface Exec extends PromiseLike<ExecResult>, AsyncIterable<ExecEvent> {
  /** Sends a signal to its process group, as soon as it runs. */
  kill(signal?: Signal): Promise<void>;
}

/** How long a command that is to end has after TERM, and again after KILL. */
const PATIENCE_MS = 5000;

export class Command implements Exec {
  readonly #calls: Verbs<'exec'>;
  readonly #vm: string;
  readonly #options: ExecOptions;
  readonly #events: AsyncGenerator<ExecEvent, void>;
  readonly #started = Promise.withResolvers<string>();
  readonly #result = Promise.withResolvers<ExecResult>();
  /** Aborting it leaves the stream. */
  readonly #leave = new AbortController();
  /** Aborted when nothing more is to be done for the command. */
  readonly #over = new AbortController();
  #read = false;
  /** Why it is made to end. */
  #why: { reason: unknown } | undefined;

  constructor(calls: Verbs<'exec'>, vm: string, argv: readonly string[], options: ExecOptions) {
    this.#calls = calls;
    this.#vm = vm;
    this.#options = options;
    this.#started.promise.catch(() => {});
    this.#result.promise.catch(() => {});
    const { stdin, max_bytes: _, signal, ...spec } = options;
    const args = { vm, argv: [...argv], ...spec, ...(stdin === undefined ? {} : { stdin: 'open' as const }) };
    const messages = calls.run(args, { signal: this.#leave.signal });
    const first = signal?.aborted ? Promise.reject(signal.reason) : messages.next();
    first.catch(() => {}); // whoever reads sees it
    this.#events = this.#follow(messages, first);
    void this.#begin(first);
  }

  // biome-ignore lint/suspicious/noThenProperty: to be awaited is what it is for
  then<A = ExecResult, B = never>(
    onDone?: ((result: ExecResult) => A | PromiseLike<A>) | null,
    onFailed?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    if (!this.#read) {
      this.#read = true;
      void this.#drain();
    }
    return this.#result.promise.then(onDone, onFailed);
  }

  async #drain(): Promise<void> {
    try {
      for await (const _ of this.#events);
    } catch {
      // the result has it
    }
  }

  [Symbol.asyncIterator](): AsyncGenerator<ExecEvent, void> {
    if (this.#read) throw new Fault('invalid', 'Cannot read the output of the command: it was read already.');
    this.#read = true;
    return this.#events;
  }

  async kill(signal: Signal = 'TERM'): Promise<void> {
    await this.#calls.signal({ vm: this.#vm, exec: await this.#started.promise, signal });
  }

  /** What is to be done as soon as it runs. */
  async #begin(first: Promise<IteratorResult<ExecMessage, void>>): Promise<void> {
    const { signal, stdin } = this.#options;
    try {
      const { value } = await first;
      if (value?.type !== 'started') throw cutShort();
      this.#started.resolve(value.exec);
      const onAbort = () => void this.#end(signal?.reason);
      signal?.addEventListener('abort', onAbort, { signal: this.#over.signal });
      if (signal?.aborted) onAbort();
      if (stdin !== undefined) await this.#feed(value.exec, stdin);
    } catch (error) {
      this.#started.reject(error);
    }
  }

  async #feed(exec: string, stdin: string | Uint8Array | Readable): Promise<void> {
    const body = typeof stdin === 'string' ? Buffer.from(stdin) : stdin;
    try {
      await this.#calls.stdin({ vm: this.#vm, exec }, { body, signal: this.#over.signal });
    } catch (error) {
      const ended = error instanceof Fault && (error.code === 'not_found' || error.code === 'bad_state');
      if (!ended && !this.#over.signal.aborted) await this.#end(error);
    }
  }

  async #end(reason: unknown): Promise<void> {
    if (this.#why !== undefined) return;
    this.#why = { reason };
    try {
      for (const signal of ['TERM', 'KILL'] as const) {
        await this.kill(signal);
        await sleep(PATIENCE_MS, undefined, { signal: this.#over.signal });
      }
    } catch (error) {
      if (this.#over.signal.aborted || (error instanceof Fault && error.code === 'not_found')) return;
    }
    this.#leave.abort(reason);
  }

  async *#follow(
    messages: AsyncGenerator<ExecMessage, void>,
    first: Promise<IteratorResult<ExecMessage, void>>,
  ): AsyncGenerator<ExecEvent, void> {
    const gathered = gather(this.#options.max_bytes);
    try {
      for (let next = await first; !next.done; next = await messages.next()) {
        const message = next.value;
        if (message.type === 'exit') {
          if (this.#why !== undefined) throw this.#why.reason;
          this.#result.resolve(gathered.result(message));
        }
        if (message.type === 'gap') gathered.missing();
        if (message.type !== 'stdout' && message.type !== 'stderr') yield message;
        else {
          const event = { type: message.type, data: Buffer.from(message.data, 'base64') };
          gathered.add(event.type, event.data);
          yield event;
        }
        if (message.type === 'exit') return;
      }
      throw cutShort();
    } catch (error) {
      const shown = this.#why === undefined ? error : this.#why.reason;
      this.#result.reject(shown);
      throw shown;
    } finally {
      this.#result.reject(
        new Fault('canceled', 'Cannot tell how the command ended: its output was not read to its end.'),
      );
      this.#over.abort();
      await messages.return();
    }
  }
}
