/** From the parts of a request to one checked input, and what to say where it does not fit. */
import type { z } from 'zod';
import { Fault } from '../api/fault.ts';

/** The fields of a request by where they came from. Path and query hold text; the body holds JSON. */
export interface Parts {
  path: Record<string, unknown>;
  query: Record<string, unknown>;
  body: unknown;
}

/** The schema below defaults, optionals and nullables. */
const bare = (schema: z.core.$ZodType): z.core.$ZodType => {
  const { def } = schema._zod;
  const wraps = def.type === 'default' || def.type === 'optional' || def.type === 'nullable';
  return wraps && 'innerType' in def ? bare(def.innerType as z.core.$ZodType) : schema;
};

/** Text from a path or a query as its field wants it; what does not look like it stays text and is refused by the schema. */
const fromText = (value: unknown, schema: z.core.$ZodType | undefined): unknown => {
  if (schema === undefined) return value;
  const inner = bare(schema);
  const { def } = inner._zod;
  if (def.type === 'array') {
    const element = 'element' in def ? (def.element as z.core.$ZodType) : undefined;
    return (Array.isArray(value) ? value : [value]).map(item => fromText(item, element));
  }
  if (typeof value !== 'string') return value;
  if (def.type === 'number' && /^-?\d{1,16}(\.\d{1,16})?$/.test(value)) return Number(value);
  if (def.type === 'boolean' && (value === 'true' || value === 'false')) return value === 'true';
  return value;
};

const show = (path: readonly PropertyKey[]): string =>
  path.map((key, i) => (typeof key === 'number' ? `[${key}]` : `${i === 0 ? '' : '.'}${String(key)}`)).join('');

const at = (value: unknown, path: readonly PropertyKey[]): unknown =>
  path.reduce<unknown>(
    (v, key) => (typeof v === 'object' && v !== null ? (v as Record<PropertyKey, unknown>)[key] : undefined),
    value,
  );

const KINDS: Record<string, string> = {
  string: 'text',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
  array: 'a list',
  object: 'an object',
  record: 'an object',
};

const bound = (issue: z.core.$ZodIssueTooBig | z.core.$ZodIssueTooSmall): string => {
  const limit = issue.code === 'too_big' ? `at most ${issue.maximum}` : `at least ${issue.minimum}`;
  if (issue.origin === 'string') return `must have ${limit} characters`;
  if (issue.origin === 'array') return `must have ${limit} entries`;
  return `must be ${limit}`;
};

/** One issue of zod as a phrase that names the field and what is allowed. */
const phrase = (issue: z.core.$ZodIssue, input: unknown, allowed: readonly string[]): string => {
  const field = issue.path.length === 0 ? 'the input' : `'${show(issue.path)}'`;
  switch (issue.code) {
    case 'unrecognized_keys': {
      const where = issue.path.length === 0 ? '' : ` in ${field}`;
      const may =
        issue.path.length > 0 ? '' : allowed.length === 0 ? '; none is taken' : `; allowed: ${allowed.join(', ')}`;
      return `unknown field ${issue.keys.map(key => `'${key.slice(0, 64)}'`).join(', ')}${where}${may}`;
    }
    case 'invalid_type': {
      if (at(input, issue.path) === undefined) return `${field} is missing`;
      return `${field} must be ${KINDS[issue.expected] ?? issue.expected}`;
    }
    case 'invalid_value':
      return at(input, issue.path) === undefined
        ? `${field} is missing`
        : `${field} must be one of ${issue.values.map(String).join(', ')}`;
    case 'too_big':
    case 'too_small':
      return `${field} ${bound(issue)}`;
    case 'invalid_format':
      if (issue.message.startsWith('Invalid')) return `${field} must match ${issue.pattern ?? issue.format}`;
      return `${field}: ${issue.message}`;
    case 'invalid_key':
      return `${field} is not a key that is taken`;
    default:
      return `${field}: ${issue.message}`;
  }
};

/** The issues of a failed parse as one phrase, the first three. */
export const explain = (error: z.core.$ZodError, input: unknown, allowed: readonly string[]): string => {
  const phrases = error.issues.slice(0, 3).map(issue => phrase(issue, input, allowed));
  const more = error.issues.length - phrases.length;
  return phrases.join('; ') + (more > 0 ? `; and ${more} more` : '');
};

const merge = (name: string, schema: z.ZodObject, parts: Parts): Record<string, unknown> => {
  const merged: Record<string, unknown> = Object.create(null); // so that no key of a request means anything to us
  const put = (key: string, value: unknown) => {
    if (key in merged) throw new Fault('invalid', `Cannot do ${name}: '${key.slice(0, 64)}' is given in two places.`);
    merged[key] = value;
  };
  for (const source of [parts.path, parts.query]) {
    for (const [key, value] of Object.entries(source)) {
      put(key, fromText(value, Object.hasOwn(schema.shape, key) ? schema.shape[key] : undefined));
    }
  }
  if (parts.body === undefined || parts.body === null) return merged;
  if (typeof parts.body !== 'object' || Array.isArray(parts.body)) {
    throw new Fault('invalid', `Cannot do ${name}: the body must be a JSON object.`);
  }
  for (const [key, value] of Object.entries(parts.body)) put(key, value);
  return merged;
};

/** Path, query and body merged and parsed once. Throws `invalid`, naming the field and what is allowed. */
export const parseInput = (name: string, schema: z.ZodObject, parts: Parts): unknown => {
  const merged = merge(name, schema, parts);
  const parsed = schema.safeParse(merged);
  if (parsed.success) return parsed.data;
  throw new Fault('invalid', `Cannot do ${name}: ${explain(parsed.error, merged, Object.keys(schema.shape))}.`);
};
