/** The daemon dies and fails at every step of templates, builds, files of images, and of the whole way up to a VM. */
import { prove } from './kit/crash.ts';
import { buildVerbs } from './kit/crash_builds.ts';
import { settled } from './kit/crash_deeds.ts';

const here = settled();

prove(here, buildVerbs(here));
