/** The daemon dies at each step of the whole way up to a VM; the same command then goes on where it stood. */
import { after, before } from 'node:test';
import { prove } from './kit/crash.ts';
import { upVerbs } from './kit/crash_up.ts';
import { type Ground, ground } from './kit/ground.ts';
import { openSources } from './kit/sources.ts';

let g: Ground;
const here = () => g;
const opened = new AsyncDisposableStack();
before(async () => {
  const sources = opened.use(await openSources());
  g = opened.use(await ground('qemu', { env: sources.env }));
  await sources.point(g.w);
});
after(() => opened.disposeAsync());

prove(here, upVerbs(here), ['before', 'after'], []);
