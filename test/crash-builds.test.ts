/** The daemon dies and fails at every step of templates, builds, files of images, and of the whole way up to a VM. */
import { after, before } from 'node:test';
import { prove } from './kit/crash.ts';
import { buildVerbs } from './kit/crash_builds.ts';
import { settle } from './kit/crash_deeds.ts';
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

prove(here, buildVerbs(here));
