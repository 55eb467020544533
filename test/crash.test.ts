/** The daemon dies and fails at every step; VMs on the stand-in of QEMU. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { prove } from './kit/crash.ts';
import { assetVerbs } from './kit/crash_assets.ts';
import { buildVerbs } from './kit/crash_builds.ts';
import { bootVerb, hostVerb, keeperVerb, seedVerb } from './kit/crash_daemon.ts';
import { settled } from './kit/crash_deeds.ts';
import { provisionVerb } from './kit/crash_provision.ts';
import { vmVerbs } from './kit/crash_vm.ts';
import { wsVerbs } from './kit/crash_ws.ts';
import { stepNames } from './kit/ground.ts';

const here = settled();

test('every step in src/ has its place in the proof, and none is named that is not there', async () => {
  const daemon = [provisionVerb(here), seedVerb(here), bootVerb(here), hostVerb(here), keeperVerb(here)];
  const all = [...vmVerbs(here), ...assetVerbs(here), ...wsVerbs(here), ...buildVerbs(here), ...daemon];
  assert.deepEqual([...new Set(all.flatMap(verb => verb.steps))].sort(), await stepNames());
});

prove(here, [...vmVerbs(here), provisionVerb(here)]);
