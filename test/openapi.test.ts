import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { OP_NAMES } from '../src/api/ops.ts';
import { openapi, openapiText } from '../src/daemon/openapi.ts';
import { VERSION } from '../src/lib/version.ts';
import { ask, testDoor } from './kit/door.ts';

test('docs/openapi.json is what the contract says (npm run openapi writes it)', async () => {
  assert.equal(await readFile(new URL('../docs/openapi.json', import.meta.url), 'utf8'), openapiText());
});

test('the daemon serves the same document', async () => {
  await using door = await testDoor({});
  assert.equal((await ask(door.socket, { path: '/openapi.json' })).text, openapiText());
});

test('it has every operation once, and every reference leads somewhere', () => {
  const text = JSON.stringify(openapi());
  for (const name of OP_NAMES) assert.equal(text.split(`"operationId":"${name}"`).length, 2, name);
  const names = new Set([...text.matchAll(/"\$ref":"([^"]+)"/g)].map(m => m[1] ?? ''));
  assert.ok(names.size > 5);
  const document = openapi();
  for (const name of names) {
    const found = name
      .slice(2)
      .split('/')
      .reduce<unknown>((at, key) => Reflect.get(Object(at), key), document);
    assert.equal(typeof found, 'object', name);
  }
});

test('the version is that of package.json', async () => {
  const text = await readFile(new URL('../package.json', import.meta.url), 'utf8');
  assert.equal(JSON.parse(text).version, VERSION);
});
