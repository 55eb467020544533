/** The daemon dies and fails at the steps that concern a VMM; on the stand-in of Firecracker. */
import { after, before } from 'node:test';
import { prove } from './kit/crash.ts';
import { bootVerb } from './kit/crash_daemon.ts';
import { settle } from './kit/crash_deeds.ts';
import { vmVerbs } from './kit/crash_vm.ts';
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

/** What does not differ from one VMM to the other is proved on the other. */
const OF_THE_VMM = [
  'vm.start',
  'vm.stop',
  'vm.stop of a guest that is silent',
  'a VMM that is killed',
  'vm.pause',
  'vm.resume',
  'vm.delete',
];

prove(here, [...vmVerbs(here).filter(verb => OF_THE_VMM.includes(verb.name)), bootVerb(here)], ['after'], ['fail']);
