/** What a door without zod needs of the contract, as plain data: `nexusctl` starts from it in half the time. */
import { z } from 'zod';
import { Job } from './job.ts';
import type { Method, Op, StreamKind } from './op.ts';
import { Nothing } from './op.ts';

/** `json`: an object, or a list of them. */
export type FieldKind = 'text' | 'integer' | 'number' | 'boolean' | 'choice' | 'list' | 'map' | 'json';

export interface Field {
  name: string;
  kind: FieldKind;
  required: boolean;
  default?: unknown;
  /** What a `choice` may be. */
  choices?: readonly string[];
  about?: string;
}

/** `job`: the answer is a job that this operation started. */
export type Answers = 'list' | 'object' | 'nothing' | 'job';

export interface Row {
  name: string;
  method: Method;
  path: string;
  summary: string;
  fields: readonly Field[];
  args: readonly string[];
  columns: readonly string[];
  answers: Answers;
  stream?: StreamKind;
  by_flag?: { readonly verb: string; readonly flag: string };
}

const KINDS: Record<string, FieldKind> = {
  string: 'text',
  number: 'number',
  boolean: 'boolean',
  enum: 'choice',
  array: 'list',
  record: 'map',
};

const field = (name: string, schema: z.core.$ZodType): Field => {
  let about: string | undefined;
  let fallback: { value: unknown } | undefined;
  let required = true;
  let inner = schema as z.ZodType;
  for (;;) {
    about ??= inner.description;
    const { def } = inner._zod;
    if (def.type === 'default' && 'defaultValue' in def) fallback = { value: def.defaultValue };
    if (def.type !== 'default' && def.type !== 'optional' && def.type !== 'nullable') break;
    required = false;
    if (!('innerType' in def)) break;
    inner = def.innerType as z.ZodType;
  }
  const objects =
    inner instanceof z.ZodObject || (inner instanceof z.ZodArray && !(inner.element instanceof z.ZodString));
  const kind = objects ? 'json' : KINDS[inner._zod.def.type];
  if (kind === undefined) throw new Error(`no flag can be made of field ${name}: ${inner._zod.def.type}`);
  const whole = kind === 'number' && 'format' in inner._zod.def && inner._zod.def.format === 'safeint';
  return {
    name,
    kind: whole ? 'integer' : kind,
    required,
    ...(fallback === undefined ? {} : { default: fallback.value }),
    ...('options' in inner && kind === 'choice' ? { choices: inner.options as string[] } : {}),
    ...(about === undefined ? {} : { about }),
  };
};

const answers = (name: string, op: Op): Answers => {
  if (op.output === Job && !name.startsWith('job.')) return 'job';
  if (op.output === Nothing) return 'nothing';
  return op.output._zod.def.type === 'array' ? 'list' : 'object';
};

export const derive = (ops: Record<string, Op>): Record<string, Row> =>
  Object.fromEntries(
    Object.entries(ops).map(([name, op]) => [
      name,
      {
        name,
        method: op.method,
        path: op.path,
        summary: op.summary,
        fields: Object.entries(op.input.shape).map(([key, schema]) => field(key, schema)),
        args: op.args ?? [],
        columns: op.columns ?? [],
        answers: answers(name, op),
        ...(op.stream === undefined ? {} : { stream: op.stream }),
        ...(op.by_flag === undefined ? {} : { by_flag: op.by_flag }),
      },
    ]),
  );
