/** An image by whatever it may be called, made where it is not there: with the steps of `up`, as far as its image. */
import { Fault } from '../api/fault.ts';
import { JOB_ENDED } from '../api/job.ts';
import type { OpOut } from '../api/ops.ts';
import type { Template } from '../api/template.ts';
import { vmUpOps } from '../api/vm_up.ts';
import { buildTemplate } from './build.ts';
import type { Host } from './host.ts';
import { inTemp } from './land.ts';
import { checkSource } from './source.ts';
import { type Goal, goalOf, goUp, STEPS } from './up.ts';

/** More than run or wait at once of one template. */
const BUILDS_MOST = 100;

const IMAGE_STEPS = STEPS.slice(0, STEPS.findIndex(step => step.what === 'image') + 1);

export const ensureImage = async (host: Host, ref: string, actor: string): Promise<OpOut<'image.ensure'>> => {
  const image = await host.store.findImage(ref);
  if (image !== undefined) return { image_id: image.id, job: null };
  const template = await host.store.findTemplate(ref);
  if (template !== undefined) return host.ensures.run(template.id, () => ensureBuilt(host, template));
  const input = vmUpOps['vm.up'].input.safeParse({ rootfs: ref }).data;
  if (input === undefined) throw none(ref);
  await checkSource(host, { source: ref, source_type: 'rootfs', sha256: null }).catch((error: unknown) => {
    const guess = error instanceof Fault && error.code === 'not_found' && !ref.includes(':');
    throw guess ? none(ref) : error;
  });
  const goal = goalOf(input);
  const there = await lookAll(host, goal);
  if (there !== undefined) return { image_id: there, job: null };
  const job = await host.jobs.start({ kind: 'image.ensure', subject: ref, input: { image: ref } }, job =>
    inTemp(host, job.job_id, temp => goUp(host, IMAGE_STEPS, { ...goal, input, actor }, job, temp)),
  );
  return { image_id: null, job };
};

/** The build that runs, or one that is started. The caller sees to it that nobody else is here for the same template. */
const ensureBuilt = async (host: Host, template: Template): Promise<OpOut<'image.ensure'>> => {
  const { id, version } = template;
  const running = await host.store.listBuilds({ template_id: id, state: 'building', limit: BUILDS_MOST });
  for (const build of running.filter(one => one.template_version === version)) {
    const job = await host.jobs.get(build.job_id);
    if (!JOB_ENDED.includes(job.state)) return { image_id: null, job };
  }
  const image = await host.store.findImage(id); // one may have ended just now
  if (image !== undefined) return { image_id: image.id, job: null };
  return { image_id: null, job: (await buildTemplate(host, template)).job };
};

const none = (ref: string): Fault =>
  new Fault('not_found', `There is no image, template or root file system '${ref}'.`, {
    hint: 'nexusctl image list, or distro:version such as debian:12',
  });

/** The ID of the image, if nothing is to be done. */
const lookAll = async (host: Host, goal: Goal): Promise<string | undefined> => {
  let last: string | undefined;
  for (const { look } of IMAGE_STEPS) {
    last = (await look(host, goal))?.id;
    if (last === undefined) return undefined;
  }
  return last;
};
