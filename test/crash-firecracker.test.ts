/** The daemon dies and fails at the steps that concern a VMM; on the stand-in of Firecracker. */
import { prove } from './kit/crash.ts';
import { bootVerb } from './kit/crash_daemon.ts';
import { settled } from './kit/crash_deeds.ts';
import { vmVerbs } from './kit/crash_vm.ts';

const here = settled('firecracker');

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
