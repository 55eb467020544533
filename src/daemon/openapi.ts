/** The OpenAPI 3.1 document, built from the contract: the same zod schemas that the door parses with. */
import { z } from 'zod';
import { DaemonInfo, DoctorReport } from '../api/daemon.ts';
import { EventMessage } from '../api/event.ts';
import { ExecMessage } from '../api/exec.ts';
import { FAULTS, type FaultCode } from '../api/fault.ts';
import { FsEntry, FsWatchMessage } from '../api/fs.ts';
import { Image } from '../api/image.ts';
import { Job, JobMessage } from '../api/job.ts';
import { Kernel } from '../api/kernel.ts';
import { type AnyOp, OP_NAMES, ops } from '../api/ops.ts';
import { ProblemSchema } from '../api/problem.ts';
import { Rootfs } from '../api/rootfs.ts';
import { TerminalMessage, TerminalSay } from '../api/terminal.ts';
import { Vm } from '../api/vm.ts';
import { VmInspect, VmTopMessage } from '../api/vm_inspect.ts';
import { VmLogMessage } from '../api/vm_watch.ts';
import { Workspace } from '../api/ws.ts';
import { VERSION } from '../lib/version.ts';

type Json = Record<string, unknown>;

/** Schemas that get a name in the document. */
const NAMED: Record<string, z.ZodType> = {
  DaemonInfo,
  DoctorReport,
  EventMessage,
  ExecMessage,
  FsEntry,
  FsWatchMessage,
  Image,
  Job,
  JobMessage,
  Kernel,
  Problem: ProblemSchema,
  Rootfs,
  TerminalMessage,
  TerminalSay,
  Vm,
  VmInspect,
  VmLogMessage,
  VmTopMessage,
  Workspace,
};

/** Keywords of zod's output that mean nothing in the document. */
const DROPPED = ['$schema', '$defs', 'id'];

/** A JSON schema with its references pointing into the document. `properties` holds names, not keywords. */
const relink = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(relink);
  if (typeof value !== 'object' || value === null) return value;
  const out: Json = {};
  for (const [key, item] of Object.entries(value)) {
    if (DROPPED.includes(key)) continue;
    if (key === '$ref') out[key] = String(item).replace('#/$defs/', '#/components/schemas/');
    else if (key === 'properties') out[key] = mapValues(item as Json, relink);
    else if (key === 'default' || key === 'enum' || key === 'const') out[key] = item;
    else out[key] = relink(item);
  }
  return out;
};

const mapValues = <T>(record: Record<string, T>, to: (value: T) => unknown): Json =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [key, to(value)]));

interface Found {
  zodSchema: z.core.$ZodTypes;
  jsonSchema: z.core.JSONSchema.BaseSchema;
}

/** Descriptions live in zod's own registry, which `metadata` replaces. base64 text is long; its format says enough. */
const override = ({ zodSchema, jsonSchema }: Found): void => {
  const description = z.globalRegistry.get(zodSchema)?.description;
  if (description !== undefined && jsonSchema.$ref === undefined) jsonSchema.description ??= description;
  if (jsonSchema.format === 'base64') delete jsonSchema.pattern;
};

/** Turns schemas to JSON and gathers the named ones. */
const makeWriter = () => {
  const metadata = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(NAMED)) metadata.add(schema, { id });
  const components: Json = {};
  const write = (schema: z.ZodType, io: 'input' | 'output'): Json => {
    const { $defs, ...body } = z.toJSONSchema(schema, { io, metadata, override });
    for (const [id, def] of Object.entries($defs ?? {})) components[id] ??= relink(def);
    const name = Object.keys(NAMED).find(key => NAMED[key] === schema);
    const clean = relink(body) as Json;
    if (name === undefined) return clean;
    components[name] ??= clean;
    return { $ref: `#/components/schemas/${name}` };
  };
  return { write, components };
};

type Write = ReturnType<typeof makeWriter>['write'];

const problem = (description: string): Json => ({
  description,
  content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
});

/** Faults by HTTP status; several codes may share one. */
const faults = (codes: readonly FaultCode[]): Json => {
  const byStatus: Record<string, string[]> = {};
  for (const code of new Set<FaultCode>(['invalid', ...codes])) {
    const [status, , title] = FAULTS[code];
    byStatus[status] = [...(byStatus[status] ?? []), `\`${code}\`: ${title}.`];
  }
  return { ...mapValues(byStatus, lines => problem(lines.join(' '))), default: problem('Any other fault.') };
};

const success = (op: AnyOp, write: Write): Json => {
  const schema = write(op.output, 'output');
  if (op.stream === 'download') {
    return {
      description: 'The bytes. An answer that breaks off is not whole.',
      headers: { 'nexus-head': { description: 'What they are, as JSON in ASCII.', schema } },
      content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
    };
  }
  if (op.stream !== 'sse') return { description: 'Done.', content: { 'application/json': { schema } } };
  return {
    description:
      'Server-sent events: the data of each is one message, as JSON. An event named `fault` carries a problem document and ends the stream.',
    content: { 'text/event-stream': { schema } },
  };
};

/** A WebSocket is beyond OpenAPI: its messages are told beside the answer. */
const talk = (op: AnyOp, write: Write): Json => ({
  responses: {
    '101': {
      description:
        'A WebSocket: binary frames hold bytes, text frames one message, as JSON. The last word of the daemon may be a problem document whose `type` is `fault`.',
    },
    ...faults(op.errors ?? []),
  },
  'x-messages': {
    from_daemon: write(op.output, 'output'),
    ...(op.input_message === undefined ? {} : { to_daemon: write(op.input_message, 'input') }),
  },
});

const body = (op: AnyOp, fields: Json, required: readonly string[]): Json | undefined => {
  if (op.stream === 'upload') {
    return {
      required: true,
      content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
    };
  }
  if (op.method === 'GET' || op.method === 'DELETE' || Object.keys(fields).length === 0) return undefined;
  const schema = { type: 'object', properties: fields, required, additionalProperties: false };
  return { required: required.length > 0, content: { 'application/json': { schema } } };
};

const operation = (name: string, op: AnyOp, write: Write): Json => {
  const schema = write(op.input, 'input');
  const properties = (schema.properties ?? {}) as Json;
  const required = Array.isArray(schema.required) ? schema.required.map(String) : [];
  const inPath = [...op.path.matchAll(/:(\w+)/g)].map(m => m[1] ?? '');
  const rest = Object.keys(properties).filter(key => !inPath.includes(key));
  const requestBody = body(
    op,
    Object.fromEntries(rest.map(key => [key, properties[key]])),
    required.filter(key => rest.includes(key)),
  );
  const inQuery = requestBody === undefined || op.stream === 'upload' ? rest : [];
  const parameters = [
    ...inPath.map(key => ({ name: key, in: 'path', required: true, schema: properties[key] })),
    ...inQuery.map(key => ({ name: key, in: 'query', required: required.includes(key), schema: properties[key] })),
  ];
  return {
    operationId: name,
    summary: op.summary,
    tags: [name.split('.')[0]],
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(requestBody === undefined ? {} : { requestBody }),
    ...(op.stream === 'ws'
      ? talk(op, write)
      : { responses: { '200': success(op, write), ...faults(op.errors ?? []) } }),
  };
};

export const openapi = (): Json => {
  const { write, components } = makeWriter();
  const paths: Record<string, Json> = {};
  write(ProblemSchema, 'output');
  for (const name of OP_NAMES) {
    const op: AnyOp = ops[name];
    const path = op.path.replaceAll(/:(\w+)/g, '{$1}');
    paths[path] = { ...paths[path], [op.method.toLowerCase()]: operation(name, op, write) };
  }
  const schemas = Object.fromEntries(Object.entries(components).sort(([a], [b]) => (a < b ? -1 : 1)));
  return {
    openapi: '3.1.0',
    info: {
      title: 'Nexus',
      version: VERSION,
      description: 'Every AI agent in its own microVM.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: 'http://localhost', description: "The daemon's Unix socket; the host name means nothing." }],
    paths,
    components: { schemas },
  };
};

/** The document as it is checked in and served. */
export const openapiText = (): string => `${JSON.stringify(openapi(), null, 2)}\n`;
