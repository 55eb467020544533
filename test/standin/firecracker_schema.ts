/**
 * Firecracker's OpenAPI document as one function that says what is wrong with a request. Strict as Firecracker's own parser: a field
 * that the document does not have is refused.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Ajv } from 'ajv';
import standalone from 'ajv/dist/standalone/index.js';
import { build } from 'esbuild';
import { parse } from 'yaml';
import { z } from 'zod';

export const DOCUMENT = join(import.meta.dirname, '../fixtures/firecracker.yaml');

const Schema = z.record(z.string(), z.unknown());
const Parameter = z.looseObject({ in: z.string(), schema: z.object({ $ref: z.string() }).optional() });
const Document = z.object({
  paths: z.record(z.string(), z.record(z.string(), z.looseObject({ parameters: z.array(Parameter).default([]) }))),
  definitions: z.record(z.string(), Schema),
});

/** Objects take what they name and nothing else, unless they say so. */
const strict = (node: unknown): unknown => {
  if (Array.isArray(node)) return node.map(strict);
  if (typeof node !== 'object' || node === null) return node;
  const out = Object.fromEntries(Object.entries(node).map(([name, value]) => [name, strict(value)]));
  if (out.type === 'object' && 'properties' in out && !('additionalProperties' in out))
    out.additionalProperties = false;
  if ('format' in out) delete out.format; // sizes of integers, and a pattern for a field that nothing here sends
  return out;
};

/** The source of a module that exports `validate(method, path, body)`. It needs nothing else. */
export const schemaModule = async (): Promise<string> => {
  const { paths, definitions } = Document.parse(parse(await readFile(DOCUMENT, 'utf8')));
  const ajv = new Ajv({ code: { source: true, esm: true }, strict: false, allErrors: false });
  ajv.addSchema({ $id: 'fc', definitions: strict(definitions) });
  const refs: Record<string, string> = {};
  const routes: { method: string; pattern: string; check: string | null }[] = [];
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, { parameters }] of Object.entries(methods)) {
      const schema = parameters.find(parameter => parameter.in === 'body')?.schema;
      const check = schema === undefined ? null : `check${routes.length}`;
      const pattern = `^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`;
      routes.push({ method: method.toUpperCase(), pattern, check });
      if (schema === undefined || check === null) continue;
      const $id = `route${routes.length}`;
      ajv.addSchema({ $id, $ref: `fc${schema.$ref}` });
      refs[check] = $id;
    }
  }
  const checks = standalone.default(ajv, refs);
  const table = routes.map(
    r => `{ method: '${r.method}', pattern: /${r.pattern.replaceAll('/', '\\/')}/, check: ${r.check} }`,
  );
  const source = `${checks}
const routes = [${table.join(',\n')}];
export const validate = (method, path, body) => {
  const route = routes.find(r => r.method === method && r.pattern.test(path));
  if (route === undefined) return 'Invalid request method and/or path: ' + method + ' ' + path + '.';
  if (route.check === null || route.check(body)) return undefined;
  const [error] = route.check.errors;
  const what = error.params.additionalProperty === undefined ? '' : ': unknown field ' + error.params.additionalProperty;
  return 'An error occurred when deserializing the json body of a request: ' + (error.instancePath || 'it') + ' ' + error.message + what + '.';
};
`;
  const bundled = await build({
    stdin: { contents: source, resolveDir: import.meta.dirname, loader: 'js' },
    bundle: true,
    format: 'esm',
    platform: 'node',
    write: false,
    logLevel: 'silent',
  });
  return bundled.outputFiles[0]?.text ?? '';
};
