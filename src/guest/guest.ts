/**
 * The host's side of one guest: its bell, its control connection, its commands.
 *
 * INVARIANTS: at most BULK streams carry output and standard input, all others wait in order; a command with an open
 * standard input takes both its places at once, so that commands that wait for input can never keep input waiting.
 * Whatever was taken is given back when the command's output is over.
 */
import type { Duplex, Readable } from 'node:stream';
import { z } from 'zod';
import type { Signal } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import { Slots } from '../lib/slots.ts';
import { plain } from '../lib/text.ts';
import { type Egress, serveEgress } from './egress.ts';
import { ExecOutput, type ExecStream, type Offsets } from './exec.ts';
import { EXECS_MOST_BYTES, ExecList, type GuestExecs } from './exec_list.ts';
import { type Ending, type Facts, Now, parseBody, parseFacts } from './facts.ts';
import { Files } from './files.ts';
import { type GuestState, Keeper, type KeeperOptions } from './keeper.ts';
import { Keys } from './keys.ts';
import { checkId, outputRequest, runRequest, tailRequest } from './output_request.ts';
import { openPort, type Port, type PortTarget } from './port.ts';
import { refusal } from './refusal.ts';
import { type OutputRequest, Requests } from './requests.ts';
import { type AgentProgram, type Updated, updateAgent } from './update.ts';
import { upload } from './upload.ts';
import type { Asked } from './wire.ts';

export interface GuestOptions extends KeeperOptions {
  /** The guest rang; a control connection comes next. */
  onBell?: () => void;
  onEnding: (kind: Ending['kind'], by: Ending['by']) => void;
  /** How long the guest may be silent when bytes of a file wait for it, or are waited for; 60 000 by default. */
  file_silence_ms?: number;
}

export interface Viewer {
  output: ExecStream;
  keys: Keys;
}

export interface ExecOptions {
  /** The standard input; without it an exec with `stdin: 'open'` waits for `writeStdin`. */
  stdin?: Readable | undefined;
  /** Before the guest has said that the command runs: ends the wait, and the command if it came about. Later: detaches. */
  signal: AbortSignal;
}

const Taken = z.object({ bytes: z.int().min(0) });
const Grown = z.object({ path: z.string().max(4096).transform(plain) });

const BULK = 112;
/** From the request to the answer that the command runs, lost connections included. */
const START_MS = 30_000;
/** How long a command's output waits for a lost connection. */
const RECOVER_MS = 120_000;

export class Guest implements AsyncDisposable {
  readonly #options: GuestOptions;
  readonly #keeper: Keeper;
  readonly #requests: Requests;
  readonly #bulk = new Slots(BULK);
  readonly #egress = new Set<Egress>();
  readonly #outputs = new Set<ExecOutput>();
  /** Commands that have a place for their standard input already. */
  readonly #reserved = new Set<string>();
  readonly files: Files;

  constructor(options: GuestOptions) {
    this.#options = options;
    this.#keeper = new Keeper(options);
    this.#requests = new Requests(this.#keeper);
    this.files = new Files(this.#requests, this.#bulk, options.file_silence_ms);
  }

  get state(): GuestState {
    return this.#keeper.state;
  }

  get facts(): Facts | null {
    return this.#keeper.facts;
  }

  /** Serves the guest on an egress connection. Settles when that has ended: then the guest needs another one. */
  async serveEgress(stream: Duplex): Promise<void> {
    if (this.#keeper.closing.aborted) {
      stream.on('error', () => {}).destroy();
      return;
    }
    const egress: Egress = serveEgress(stream, {
      onBell: facts => {
        this.#options.onBell?.();
        this.#keeper.bell(facts);
        // The guest speaks on one; what rang before is a leftover.
        for (const other of this.#egress) if (other !== egress) other.close();
      },
      onMisfit: fault => this.#keeper.misfit(fault),
      onEnding: ({ kind, by }) => this.#options.onEnding(kind, by),
      log: this.#options.log,
    });
    this.#egress.add(egress);
    await egress.ended;
    this.#egress.delete(egress);
  }

  /** Resolves when the guest has rung and a control connection has answered. Rejects for an agent that does not fit. */
  ready(signal: AbortSignal): Promise<Facts> {
    return this.#keeper.ready(this.#requests.bounded(signal));
  }

  /** No pings and no new connections until disposed: for the time in which the VM is paused. */
  hold(): Disposable {
    return this.#keeper.hold();
  }

  /** This host stood still, or its clock was set: the guest's is looked at. */
  doubtClock(): void {
    this.#keeper.doubtClock();
  }

  /** Round trip to the agent and back, ms. */
  ping(signal: AbortSignal): Promise<number> {
    return this.#requests.ping(signal);
  }

  /** Asks the guest for its facts again. */
  async refresh(signal: AbortSignal): Promise<Facts> {
    const request = { what: "get the guest's facts", method: 'GET', path: '/v1/facts', again: true } as const;
    const facts = parseFacts((await this.#requests.call(request, signal)).body);
    this.#keeper.learn(facts);
    return facts;
  }

  /** Commands that run, or have ended a short time ago. */
  async execs(signal: AbortSignal): Promise<GuestExecs> {
    const what = "list the guest's commands";
    const request = { what, method: 'GET', path: '/v1/execs', again: true, most: EXECS_MOST_BYTES } as const;
    const { body } = await this.#requests.call(request, signal);
    return parseBody(ExecList, body, "the guest's list of commands").execs;
  }

  /** Signals the command's process group; `not_found` if it has ended. */
  async signalExec(id: string, name: Signal, signal: AbortSignal): Promise<void> {
    const path = `/v1/exec/${checkId(id)}/signal`;
    const what = `send ${name} to command ${id}`;
    await this.#requests.call({ what, method: 'POST', path, body: { signal: name }, again: false }, signal);
  }

  /** Sets the size of the command's terminal. */
  async resizeExec(id: string, cols: number, rows: number, signal: AbortSignal): Promise<void> {
    const path = `/v1/exec/${checkId(id)}/resize`;
    const what = `set the size of the terminal of command ${id}`;
    await this.#requests.call({ what, method: 'POST', path, body: { cols, rows }, again: true }, signal);
  }

  async power(kind: 'poweroff' | 'reboot', grace_ms: number, signal: AbortSignal): Promise<void> {
    const body = { kind, grace_ms };
    const what = `ask the guest to ${kind === 'reboot' ? 'start again' : 'shut down'}`;
    await this.#requests.call({ what, method: 'POST', path: '/v1/power', body, again: false }, signal);
  }

  /** What its machine has and does at this moment. */
  async now(signal: AbortSignal): Promise<Now> {
    const request = { what: 'ask the guest how it is', method: 'GET', path: '/v1/now', again: true } as const;
    return parseBody(Now, (await this.#requests.call(request, signal)).body, 'how the guest is');
  }

  /**
   * Lets the guest grow the file system on a disk (`vdb`) that is as long as that; gives where it is mounted. `bad_state`: it is not
   * mounted; `unsupported`: the agent is older than this request.
   */
  async growDisk(device: string, size_bytes: number, signal: AbortSignal): Promise<string> {
    const what = `grow the file system on /dev/${device}`;
    const body = { device, size_bytes };
    const request = { what, method: 'POST', path: '/v1/disks/grow', body, again: true } as const;
    return parseBody(Grown, (await this.#requests.call(request, signal)).body, 'what was grown').path;
  }

  /** Puts another program in the agent's place; what runs in the guest goes on. */
  update(program: AgentProgram, signal: AbortSignal): Promise<Updated> {
    return updateAgent(this.#requests, program, signal);
  }

  /** Runs a command. Resolves when it runs; one that cannot be started is a fault with a `reason`. */
  async exec(spec: Asked, options: ExecOptions): Promise<ExecStream> {
    const { id } = spec;
    const { stdin, signal } = options;
    const fed = spec.stdin === 'open' || stdin !== undefined;
    // Apart from the standard input, so that the request can be made again when the connection is lost under it.
    const request = runRequest({ ...spec, stdin: fed ? 'later' : 'none' });
    let asked = false;
    try {
      const place = await this.#bulk.take(fed ? 2 : 1, this.#requests.bounded(signal));
      if (fed) this.#reserved.add(id);
      asked = true;
      const output = await this.#output(request, signal, () => {
        this.#reserved.delete(id);
        place[Symbol.dispose]();
      });
      if (stdin !== undefined) this.#feed(output, stdin);
      return output;
    } catch (error) {
      stdin?.destroy();
      // It may run all the same, and nobody knows of it.
      if (asked && signal.aborted) this.signalExec(id, 'KILL', this.#keeper.closing).catch(() => {});
      throw error;
    }
  }

  /** Reads a command's output again, from these offsets on. The signal detaches. */
  async attachExec(id: string, offsets: Offsets, signal: AbortSignal): Promise<ExecStream> {
    const request = outputRequest(checkId(id), offsets);
    const place = await this.#bulk.take(1, this.#requests.bounded(signal));
    return await this.#output(request, signal, () => place[Symbol.dispose]());
  }

  /** Looks at a terminal, from its last lines on, and types on it. The signal lets go of it. */
  async viewTerminal(asked: Asked | { id: string; tail: number }, signal: AbortSignal): Promise<Viewer> {
    const request = 'argv' in asked ? runRequest(asked) : tailRequest(asked.id, asked.tail);
    const place = await this.#bulk.take(2, this.#requests.bounded(signal));
    const output = await this.#output(request, signal, () => place[Symbol.dispose]());
    return { output, keys: new Keys(this.#requests, output.id, output.over) };
  }

  /** Connects to a port of the guest's loopback. The signal breaks the connection off. */
  async openPort(target: PortTarget, signal: AbortSignal): Promise<Port> {
    const place = await this.#bulk.take(1, this.#requests.bounded(signal));
    try {
      return await openPort(this.#requests, target, () => place[Symbol.dispose](), signal);
    } catch (error) {
      place[Symbol.dispose]();
      throw error;
    }
  }

  /** Feeds a command's standard input and ends it. Resolves with the bytes that the guest took. */
  async writeStdin(id: string, stream: Readable, signal: AbortSignal): Promise<number> {
    const limit = this.#requests.bounded(signal);
    const what = `feed command ${id}`;
    try {
      const reserved = this.#reserved.delete(checkId(id));
      using _place = reserved ? undefined : await this.#bulk.take(1, limit);
      const request = { what, path: `/v1/exec/${id}/stdin`, body: stream };
      const { status, body } = await upload(this.#requests, request, limit, signal);
      if (status !== 200) throw refusal(what, status, body);
      return parseBody(Taken, body, 'what the command took').bytes;
    } finally {
      stream.destroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = this.#keeper[Symbol.asyncDispose]();
    for (const egress of this.#egress) egress.close();
    for (const output of this.#outputs) output.fail(this.#keeper.closing.reason);
    await closed;
  }

  async #output(request: OutputRequest, signal: AbortSignal, onOver: () => void) {
    try {
      const { source, pid, id, from } = await this.#requests.output(request, START_MS, signal);
      const detach = () => output.detach();
      const output: ExecOutput = new ExecOutput(
        {
          id,
          pid,
          source,
          reattach: async (at, over) => (await this.#requests.output(outputRequest(id, at), RECOVER_MS, over)).source,
          onOver: () => {
            signal.removeEventListener('abort', detach);
            this.#outputs.delete(output);
            onOver();
          },
        },
        from,
      );
      this.#outputs.add(output);
      signal.addEventListener('abort', detach, { once: true });
      return output.start();
    } catch (error) {
      onOver();
      throw error;
    }
  }

  /** A command whose input broke off must not look like one that had all of it. */
  #feed(output: ExecOutput, stdin: Readable): void {
    this.writeStdin(output.id, stdin, output.over).catch(error => {
      if (error instanceof Fault && error.code === 'not_found') return; // it has ended
      output.fail(error);
    });
  }
}

export const openGuest = (options: GuestOptions): Guest => new Guest(options);
