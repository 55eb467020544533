/** Real Firecracker: what `test/lab/*.lab.ts` found, each of its tests as one here. */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { test } from 'node:test';
import { Fault } from '../src/api/fault.ts';
import { type Lab, type LabResult, openLab } from './kit/lab.ts';

/** The first run fetches a Debian and a kernel. */
const LIMIT_MS = 1_100_000;

const files = async (): Promise<string[]> => {
  const names = (await readdir(join(import.meta.dirname, 'lab'))).filter(name => name.endsWith('.lab.ts'));
  return names.sort().map(name => `test/lab/${name}`);
};

/** Undefined, and the test is skipped, where an ordinary user cannot make a lab. */
const tryLab = async (skip: (why: string) => void): Promise<Lab | undefined> => {
  try {
    return await openLab(await files());
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'host' || process.getuid?.() === 0) throw error;
    skip(`no lab without root: ${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`);
    return undefined;
  }
};

test('real Firecracker', { timeout: LIMIT_MS, skip: process.arch !== 'x64' && 'the lab is an x86_64' }, async t => {
  const from = performance.now();
  await using lab = await tryLab(why => t.skip(why));
  if (lab === undefined) return;
  t.diagnostic(`${lab.where}, ready after ${Math.round(performance.now() - from)} ms`);
  const names: string[] = [];
  const onResult = async (result: LabResult) => {
    if (result.type === 'note') return t.diagnostic(result.text);
    names.push(result.name);
    await t.test(`${result.name} (${result.ms} ms)`, { skip: result.skip ?? false }, () => {
      if (result.error !== undefined) throw new Error(result.error);
    });
  };
  const code = await lab.test(onResult);
  assert.equal(code, 0, 'the tests inside failed');
  assert.notEqual(names.length, 0, 'the tests inside did not run');
});
