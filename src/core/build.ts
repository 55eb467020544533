import { type Build, buildItem } from '../api/build.ts';
import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import type { Template } from '../api/template.ts';
import { startBuild } from './building.ts';
import { needBuild, needTemplate } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { newId } from './ids.ts';
import { layersOf } from './layers.ts';

export const buildHandlers = (host: Host): HandlersOf<'build'> => ({
  'build.trigger': async (_ctx, { template }) => {
    const { build } = await buildTemplate(host, await needTemplate(host, template));
    return buildItem(build);
  },
  'build.list': async (_ctx, { template, state, limit }) => {
    const template_id = template === undefined ? undefined : (await needTemplate(host, template)).id;
    const filter = { ...(template_id !== undefined && { template_id }), ...(state !== undefined && { state }), limit };
    return (await host.store.listBuilds(filter)).map(buildItem);
  },
  'build.inspect': (_ctx, { build }) => needBuild(host, build),
  'build.logs': async (ctx, { build, follow }) => {
    const { id, job_id } = await needBuild(host, build);
    await host.jobs.get(job_id).catch(error => {
      if (!(error instanceof Fault) || error.code !== 'not_found') throw error;
      throw new Fault('not_found', `The log of build '${id}' is gone: it is too old.`, { cause: error });
    });
    return host.jobs.log(job_id, ctx.signal, follow);
  },
  'build.cancel': async (_ctx, { build: ref }) => {
    const build = await needBuild(host, ref);
    if (build.state !== 'building') throw over(build);
    await host.jobs.cancel(build.job_id);
    const now = await needBuild(host, build.id);
    if (now.state === 'success') throw over(now); // it was faster
    return buildItem(now);
  },
});

const over = ({ id, state }: Build): Fault => new Fault('bad_state', `Cannot cancel build '${id}': it is ${state}.`);

/** Starts a build of a template as it is now. */
export const buildTemplate = async (host: Host, template: Template): Promise<{ build: Build; job: Job }> => {
  const { id: template_id, name, version, source_type, source, sha256 } = template;
  const layers = await layersOf(host, template);
  const id = newId('bld');
  return startBuild(host, 'build.trigger', {
    ...{ ...layers, id, template_id, template: name, template_version: version, source_type, source, sha256 },
    image_name: `${name}-v${version}-${id.slice(-6)}`,
  });
};
