/**
 * One connection to QEMU's control socket (QMP: JSON objects, one a line; docs/interop/qmp-spec of QEMU).
 *
 * INVARIANTS: one command is in flight at a time. A command that gets no answer in time ends the connection, so that a
 * late answer can never be taken for the next one's. After `closed` every command rejects. Memory is bounded by MAX_LINE, work by MAX_UNASKED.
 */
import type { Socket } from 'node:net';
import { z } from 'zod';
import { DeadlineError, withDeadline } from '../lib/deadline.ts';
import { atMost } from '../lib/rate.ts';

const MAX_LINE = 1024 * 1024;
/** What was not asked for, in a second. QEMU holds back events that a guest could cause without end: what says more is no QEMU. */
const MAX_UNASKED = 1000;
export const COMMAND_MS = 10_000;

const Message = z.union([
  z.object({ QMP: z.unknown() }),
  z.object({ event: z.string(), data: z.record(z.string(), z.unknown()).default({}) }),
  z.object({ id: z.number(), return: z.unknown() }),
  z.object({ id: z.number().optional(), error: z.object({ class: z.string(), desc: z.string() }) }),
]);

export interface QmpEvent {
  event: string;
  data: Record<string, unknown>;
}

/** QEMU refused a command. */
export class QmpError extends Error {
  /** `GenericError`, `DeviceNotFound`, `CommandNotFound`, … */
  readonly kind: string;
  constructor(command: string, kind: string, desc: string) {
    super(`QEMU refused ${command}: ${desc}`);
    this.name = 'QmpError';
    this.kind = kind;
  }
}

/** The connection ended before the command was sent: it may be sent on the next one. */
export class Unsent extends Error {
  constructor() {
    super('the control socket of QEMU has ended');
    this.name = 'Unsent';
  }
}

export class Qmp {
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  readonly #onEvent: (event: QmpEvent) => void;
  readonly #greeting = Promise.withResolvers<void>();
  #turn: Promise<unknown> = Promise.resolve();
  #waiting: { id: number; command: string; answer: PromiseWithResolvers<unknown> } | undefined;
  #parts: Buffer[] = [];
  #size = 0;
  #last = 0;
  #over = false;
  readonly #may = atMost(MAX_UNASKED, 1000);

  constructor(socket: Socket, onEvent: (event: QmpEvent) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    this.#greeting.promise.catch(() => {});
    const closed = Promise.withResolvers<void>();
    this.closed = closed.promise;
    socket.on('error', () => {}); // 'close' follows and says all there is to say
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.once('close', () => {
      this.#over = true;
      const error = new Error('the control socket of QEMU has ended');
      this.#greeting.reject(error);
      this.#waiting?.answer.reject(error);
      closed.resolve();
    });
  }

  /** Waits for the greeting and leaves the negotiation mode. QEMU serves one client: the greeting may have to wait. */
  async greet(ms: number, signal: AbortSignal): Promise<void> {
    try {
      await withDeadline("QEMU's greeting", ms, this.#greeting.promise, signal);
      await this.command('qmp_capabilities');
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Runs one command after those before it. */
  async command(command: string, args?: Record<string, unknown>, ms = COMMAND_MS): Promise<unknown> {
    const before = this.#turn;
    const mine = before.then(() => this.#send(command, args, ms));
    this.#turn = mine.catch(() => {});
    return mine;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #send(command: string, args: Record<string, unknown> | undefined, ms: number): Promise<unknown> {
    if (this.#over || this.#socket.destroyed) throw new Unsent();
    const id = ++this.#last;
    const answer = Promise.withResolvers<unknown>();
    answer.promise.catch(() => {});
    this.#waiting = { id, command, answer };
    this.#socket.write(`${JSON.stringify({ execute: command, id, ...(args && { arguments: args }) })}\n`);
    try {
      return await withDeadline(`${command} on QEMU`, ms, answer.promise);
    } catch (error) {
      if (error instanceof DeadlineError) this.close();
      throw error;
    } finally {
      this.#waiting = undefined;
    }
  }

  #take(chunk: Buffer): void {
    let rest = chunk;
    for (let end = rest.indexOf(10); end !== -1 && !this.#socket.destroyed; end = rest.indexOf(10)) {
      const line = Buffer.concat([...this.#parts, rest.subarray(0, end)]).toString('utf8');
      this.#parts = [];
      this.#size = 0;
      rest = rest.subarray(end + 1);
      if (line.trim() !== '') this.#dispatch(line);
    }
    if (rest.length === 0) return;
    this.#parts.push(rest);
    this.#size += rest.length;
    if (this.#size > MAX_LINE) this.close();
  }

  #dispatch(line: string): void {
    let json: unknown;
    try {
      json = JSON.parse(line);
    } catch {
      this.close();
      return;
    }
    const { data: message } = Message.safeParse(json);
    if (message !== undefined && 'id' in message && this.#waiting !== undefined && this.#waiting.id === message.id) {
      const { answer, command } = this.#waiting;
      if ('return' in message) answer.resolve(message.return);
      else answer.reject(new QmpError(command, message.error.class, message.error.desc));
    } else if (!this.#may().pass) this.close();
    else if (message === undefined) return;
    else if ('QMP' in message) this.#greeting.resolve();
    else if ('event' in message) this.#onEvent({ event: message.event, data: message.data });
  }
}
