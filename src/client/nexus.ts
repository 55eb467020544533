/**
 * The client: every operation of the contract as `client.<noun>.<verb>(args, options)`.
 *
 *     await using nexus = new Nexus();
 *     const vm = await nexus.vm.start({ vm: 'web' });
 *     for await (const message of nexus.exec.run({ vm: 'web', argv: ['uname', '-a'] })) …
 *     await using box = await nexus.machine({ image: 'base' });
 *     const { stdout, exit_code } = await box.exec(['uname', '-a']);
 *
 * Faults of the daemon come back as `Fault`; a daemon that does not answer is `Unreachable`.
 */
import { type CallOptions, callWith, type Nouns, noun, streamWith, type UploadOptions, type Verbs } from './calls.ts';
import type { Machine, MachineOptions } from './machine.ts';
import { defaultSocket, type Transport, unixTransport } from './transport.ts';

export interface NexusOptions {
  /** Path of the daemon's socket; default: `defaultSocket()`. */
  socket?: string | undefined;
}

/** A connection to one daemon. Connections are opened when they are needed and kept for the next call. */
export class Nexus implements Nouns, AsyncDisposable {
  readonly socket: string;
  readonly daemon: Verbs<'daemon'>;
  readonly kernel: Verbs<'kernel'>;
  readonly provider: Verbs<'provider'>;
  readonly rootfs: Verbs<'rootfs'>;
  readonly firecracker: Verbs<'firecracker'>;
  readonly template: Verbs<'template'>;
  readonly build: Verbs<'build'>;
  readonly image: Verbs<'image'>;
  readonly ws: Verbs<'ws'>;
  readonly vm: Verbs<'vm'>;
  readonly exec: Verbs<'exec'>;
  readonly fs: Verbs<'fs'>;
  readonly terminal: Verbs<'terminal'>;
  readonly port: Verbs<'port'>;
  readonly job: Verbs<'job'>;
  readonly event: Verbs<'event'>;
  readonly #transport: Transport;

  constructor(options: NexusOptions = {}) {
    this.socket = options.socket ?? defaultSocket();
    const transport = unixTransport(this.socket);
    this.#transport = transport;
    this.daemon = noun(transport, 'daemon');
    this.kernel = noun(transport, 'kernel');
    this.provider = noun(transport, 'provider');
    this.rootfs = noun(transport, 'rootfs');
    this.firecracker = noun(transport, 'firecracker');
    this.template = noun(transport, 'template');
    this.build = noun(transport, 'build');
    this.image = noun(transport, 'image');
    this.ws = noun(transport, 'ws');
    this.vm = noun(transport, 'vm');
    this.exec = noun(transport, 'exec');
    this.fs = noun(transport, 'fs');
    this.terminal = noun(transport, 'terminal');
    this.port = noun(transport, 'port');
    this.job = noun(transport, 'job');
    this.event = noun(transport, 'event');
  }

  /** A call whose operation is known only at run time. */
  call(name: string, args: Record<string, unknown>, options: Partial<UploadOptions> = {}): Promise<unknown> {
    return callWith(this.#transport, name, args, options);
  }

  /** A stream whose operation is known only at run time. */
  stream(name: string, args: Record<string, unknown>, options: CallOptions = {}): AsyncGenerator<unknown, void> {
    return streamWith(this.#transport, name, args, options);
  }

  /**
   * Makes a VM and starts it: `await using box = await nexus.machine({ image: 'base' })`. The end of the scope deletes it; a start that
   * fails or is aborted leaves none.
   */
  async machine(options: MachineOptions = {}): Promise<Machine> {
    const { openMachine } = await import('./machine.ts');
    return openMachine(this, options);
  }

  /** Closes idle connections and ends what runs on the others. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#transport.close();
  }
}
