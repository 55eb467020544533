/** The daemon dies and fails at every step that concerns a VMM; on the stand-in of Firecracker. */
import { after, before } from 'node:test';
import { prove } from './kit/crash.ts';
import { bootVerb, settle, vmVerbs } from './kit/crash_verbs.ts';
import { type Ground, ground } from './kit/ground.ts';

let g: Ground;
const here = () => g;
before(async () => {
  g = await ground('firecracker');
  await settle(here);
});
after(async () => {
  await g[Symbol.asyncDispose]();
});

prove(here, [...vmVerbs(here).filter(verb => verb.name !== 'vm.create'), bootVerb(here)]);
