/** The daemon dies and fails at every step; VMs on the stand-in of QEMU. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { prove } from './kit/crash.ts';
import { assetVerbs, bootVerb, hostVerb, settle, vmVerbs } from './kit/crash_verbs.ts';
import { type Ground, ground, stepNames } from './kit/ground.ts';

let g: Ground;
const here = () => g;
before(async () => {
  g = await ground();
  await settle(here);
});
after(async () => {
  await g[Symbol.asyncDispose]();
});

const verbs = [...vmVerbs(here), ...assetVerbs(here), bootVerb(here), hostVerb(here)];

test('every step has its place here, and none is named that is not there', async () => {
  const named = new Set(verbs.flatMap(verb => verb.steps));
  assert.deepEqual([...named].sort(), await stepNames());
});

prove(here, verbs);
