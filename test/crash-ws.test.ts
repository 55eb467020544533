/** The daemon dies and fails at every step of workspaces, and of what clears up. */
import { after, before } from 'node:test';
import { prove } from './kit/crash.ts';
import { settle } from './kit/crash_deeds.ts';
import { wsVerbs } from './kit/crash_ws.ts';
import { type Ground, ground } from './kit/ground.ts';

let g: Ground;
const here = () => g;
before(async () => {
  g = await ground();
  await settle(here);
});
after(async () => {
  await g[Symbol.asyncDispose]();
});

prove(here, wsVerbs(here));
