/** How an operation of the contract becomes a typed call, and the call a request. */
import type { Readable } from 'node:stream';
import type { Row } from '../api/derive.ts';
import { Fault } from '../api/fault.ts';
import type { OpArgs, OpName, OpOut, OpSay, OpStream } from '../api/ops.ts';
import { TABLE } from '../api/table.ts';
import { type Download, downloadOf } from './download.ts';
import type { RawTalk, Talk } from './raw_talk.ts';
import { readSse } from './sse.ts';
import { readText, type Transport } from './transport.ts';

export interface CallOptions {
  /** Aborting ends the request; a plain operation goes on in the daemon. */
  signal?: AbortSignal | undefined;
  /** Of a stream: from its first message on it does not keep this process alive. */
  unref?: boolean | undefined;
}

export interface UploadOptions extends CallOptions {
  body: Readable | Uint8Array;
}

type Plain<N extends OpName> =
  Record<string, never> extends OpArgs<N>
    ? (args?: OpArgs<N>, options?: CallOptions) => Promise<OpOut<N>>
    : (args: OpArgs<N>, options?: CallOptions) => Promise<OpOut<N>>;
type Sse<N extends OpName> =
  Record<string, never> extends OpArgs<N>
    ? (args?: OpArgs<N>, options?: CallOptions) => AsyncGenerator<OpOut<N>, void>
    : (args: OpArgs<N>, options?: CallOptions) => AsyncGenerator<OpOut<N>, void>;
type Ws<N extends OpName> = (args: OpArgs<N>, options?: CallOptions) => Promise<Talk<OpOut<N>, OpSay<N>>>;
type Upload<N extends OpName> = (args: OpArgs<N>, options: UploadOptions) => Promise<OpOut<N>>;
type Downloads<N extends OpName> = (args: OpArgs<N>, options?: CallOptions) => Promise<Download<OpOut<N>>>;

export type Call<N extends OpName> =
  OpStream<N> extends 'sse'
    ? Sse<N>
    : OpStream<N> extends 'upload'
      ? Upload<N>
      : OpStream<N> extends 'download'
        ? Downloads<N>
        : OpStream<N> extends 'ws'
          ? Ws<N>
          : Plain<N>;

export type Noun = OpName extends `${infer N}.${string}` ? N : never;
type Verb<N extends Noun> = Extract<OpName, `${N}.${string}`> extends `${N}.${infer V}` ? V : never;
export type Verbs<N extends Noun> = { readonly [V in Verb<N>]: `${N}.${V}` extends OpName ? Call<`${N}.${V}`> : never };
export type Nouns = { readonly [N in Noun]: Verbs<N> };

const queryText = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value));

/** Method, path, query and body of one call. */
const outgoing = (row: Row, args: Record<string, unknown>) => {
  const rest = new Map(Object.entries(args).filter(([, value]) => value !== undefined));
  const path = row.path.replaceAll(/:(\w+)/g, (_, key: string) => {
    const value = rest.get(key);
    rest.delete(key);
    if (value === undefined || value === '') throw new Fault('invalid', `Cannot do ${row.name}: '${key}' is missing.`);
    if (value === '.' || value === '..') throw new Fault('invalid', `Cannot do ${row.name}: '${value}' is not a name.`);
    return encodeURIComponent(String(value));
  });
  const inQuery = row.method === 'GET' || row.method === 'DELETE' || row.stream === 'upload';
  if (!inQuery) return { method: row.method, path, json: JSON.stringify(Object.fromEntries(rest)) };
  const query = new URLSearchParams();
  for (const [key, value] of rest) {
    for (const item of Array.isArray(value) ? value : [value]) query.append(key, queryText(item));
  }
  return { method: row.method, path: query.size === 0 ? path : `${path}?${query}` };
};

const rowOf = (name: string): Row => {
  const row = TABLE[name];
  if (row === undefined) throw new Fault('invalid', `There is no operation '${name}'.`);
  return row;
};

/** One call whose name is known only at run time; what comes back is what the daemon sent. */
export const callWith = async (
  transport: Transport,
  name: string,
  args: Record<string, unknown>,
  options: CallOptions & { body?: Readable | Uint8Array } = {},
): Promise<unknown> => {
  const message = await transport.send({
    ...outgoing(rowOf(name), args),
    accept: 'application/json',
    upload: options.body,
    signal: options.signal,
  });
  return JSON.parse(await readText(message, transport.socket));
};

export async function* streamWith(
  transport: Transport,
  name: string,
  args: Record<string, unknown>,
  options: CallOptions = {},
): AsyncGenerator<unknown, void> {
  const { signal, unref } = options;
  const message = await transport.send({ ...outgoing(rowOf(name), args), accept: 'text/event-stream', signal });
  for await (const one of readSse(message, transport.socket, signal)) {
    if (unref === true) message.socket.unref();
    yield one;
  }
}

const downloadWith = async (
  transport: Transport,
  name: string,
  args: Record<string, unknown>,
  { signal }: CallOptions = {},
): Promise<Download<unknown>> => {
  const message = await transport.send({ ...outgoing(rowOf(name), args), accept: 'application/octet-stream', signal });
  return downloadOf(message, transport.socket, signal);
};

const talkWith = async (
  transport: Transport,
  name: string,
  args: Record<string, unknown>,
  options: CallOptions = {},
): Promise<RawTalk> => {
  const { path } = outgoing(rowOf(name), args);
  const { openTalk } = await import('./talk.ts'); // loads a WebSocket
  const talk = await openTalk(transport.socket, path, options.signal);
  transport.talks.add(talk);
  talk.over.then(() => transport.talks.delete(talk));
  return talk;
};

const WAYS = { sse: streamWith, upload: callWith, download: downloadWith, ws: talkWith } as const;

/** One noun's verbs. The daemon keeps the contract, and TypeScript cannot follow it through the loop: hence the cast. */
export const noun = <N extends Noun>(transport: Transport, name: N): Verbs<N> => {
  const verbs: Record<string, unknown> = {};
  for (const row of Object.values(TABLE)) {
    const [of, verb] = row.name.split('.');
    if (of !== name || verb === undefined) continue;
    const way = row.stream === undefined ? callWith : WAYS[row.stream];
    verbs[verb] = (args: Record<string, unknown> = {}, options: CallOptions = {}) =>
      way(transport, row.name, args, options);
  }
  return verbs as Verbs<N>;
};
