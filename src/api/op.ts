/** One definition per operation: REST routes, OpenAPI, client, CLI and MCP are loops over records of these. */
import { z } from 'zod';
import type { FaultCode } from './fault.ts';

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';

/**
 * `sse`: the answer is `text/event-stream`; `output` is the schema of one message (a discriminated union on `type`).
 * `ws`: a WebSocket. A binary frame holds bytes, a text frame one message: of the schema `output` from the daemon, of `input_message`
 * to it; the daemon's last one may be `{type:'fault', …}` with a problem document. No `Origin` is let in.
 * `upload`: the request body is `application/octet-stream`, read as a stream; the input comes from path and query.
 * `download`: the answer is `application/octet-stream`; `output` is what its header `nexus-head` says of it, as JSON in ASCII. What
 * fails in the middle breaks the connection off: the end of the answer is the end of the bytes.
 */
export type StreamKind = 'sse' | 'upload' | 'download' | 'ws';

export interface Op<
  I extends z.ZodObject = z.ZodObject,
  O extends z.ZodType = z.ZodType,
  S extends StreamKind | undefined = StreamKind | undefined,
  M extends z.ZodType = z.ZodType,
> {
  readonly method: Method;
  /** Fastify form: `/v1/vms/:vm/start`; each `:name` is a field of `input`. */
  readonly path: string;
  readonly summary: string;
  readonly input: I;
  readonly output: O;
  readonly errors?: readonly FaultCode[];
  /** Fields of `input` that the CLI takes as positionals, in order; a trailing `...` takes the rest (an array). */
  readonly args?: readonly string[];
  /** Fields of the output (or of its items) that the CLI shows as a table. */
  readonly columns?: readonly string[];
  /** The CLI has it under another verb of its noun, by a flag there: `kernel list --available`. */
  readonly by_flag?: { readonly verb: string; readonly flag: string };
  /** True: a tool of the MCP endpoint. */
  readonly tool?: boolean;
  readonly stream?: S;
  /** `ws` only: the schema of one message to the daemon. */
  readonly input_message?: M;
}

export const op = <
  I extends z.ZodObject,
  O extends z.ZodType,
  S extends StreamKind | undefined = undefined,
  M extends z.ZodType = z.ZodNever,
>(
  definition: Op<I, O, S, M>,
): Op<I, O, S, M> => definition;

export type In<T> = T extends Op<infer I, z.ZodType> ? z.output<I> : never;
/** What a caller passes: fields with defaults are optional. */
export type Args<T> = T extends Op<infer I, z.ZodType> ? z.input<I> : never;
export type Out<T> = T extends Op<z.ZodObject, infer O> ? z.output<O> : never;

/** What a caller says while a `ws` operation is open. */
export type Say<T> = T extends Op<z.ZodObject, z.ZodType, StreamKind | undefined, infer M> ? z.output<M> : never;

export type Stream<T> = T extends Op<z.ZodObject, z.ZodType, infer S> ? S : never;

/** The answer of an operation that has nothing to say. */
export const Nothing = z.strictObject({});
