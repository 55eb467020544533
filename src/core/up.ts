/**
 * From nothing to a VM that runs. Each step looks whether its result is there, and makes it where it is not: what was cut off goes on where
 * it stood.
 */
import { Fault } from '../api/fault.ts';
import type { Job } from '../api/job.ts';
import type { OpIn } from '../api/ops.ts';
import type { Template } from '../api/template.ts';
import { vmOps } from '../api/vm_ops.ts';
import type { UpStep } from '../api/vm_up.ts';
import type { VmRecord } from '../store/store.ts';
import { usualAsset } from './asset.ts';
import { buildTemplate } from './build.ts';
import { fetchOrder } from './fetch.ts';
import { needTemplate, needVm } from './find.ts';
import type { Host } from './host.ts';
import type { JobContext } from './jobs.ts';
import { inTemp } from './land.ts';
import { orderOf } from './order.ts';
import { isReady } from './provision.ts';
import { checkSource, obtain } from './source.ts';
import { startVm } from './start.ts';
import { newTemplate } from './template.ts';
import { createVm } from './vm_create.ts';
import { waitVm } from './wait.ts';

type UpInput = OpIn<'vm.up'>;

export interface Goal extends Pick<UpInput, 'rootfs'> {
  /** Of the VM. */
  name: string;
  /** Of the template. */
  template: string;
}

type Found = { id: string; detail: string } | undefined;

export interface Step {
  what: UpStep['what'];
  /** What will be done. */
  will(goal: Goal): string;
  look(host: Host, goal: Goal): Promise<Found>;
  /** Makes it; gives its ID. */
  make(host: Host, goal: Goal & { input: UpInput; actor: string }, job: JobContext, temp: string): Promise<string>;
}

export const goalOf = ({ rootfs, name }: Pick<UpInput, 'rootfs' | 'name'>): Goal => {
  const stem = rootfs
    .replace(':', '-')
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]/g, '-')
    .slice(0, 40);
  const template = stem.replace(/[^a-z0-9]+$/, '');
  return { rootfs, name: name ?? template, template };
};

const templateOf = async (host: Host, { template: name, rootfs }: Goal): Promise<Template | undefined> => {
  const template = await host.store.findTemplate(name);
  if (template === undefined || (template.source_type === 'rootfs' && template.source === rootfs)) return template;
  throw new Fault('exists', `Cannot use template '${name}': it is of ${template.source}, not of ${rootfs}.`, {
    hint: `build it and create a VM of it: nexusctl build trigger ${name}`,
  });
};

const imageOf = async (host: Host, goal: Goal) => {
  const template = await templateOf(host, goal);
  const image = template && (await host.store.findImage(template.id));
  const build = image?.build_id == null ? undefined : await host.store.findBuild(image.build_id);
  return build?.template_version === template?.version ? image : undefined;
};

/** The VM of that name, if it is one of this template. */
const vmOf = async (host: Host, goal: Goal): Promise<VmRecord | undefined> => {
  const vm = await host.store.findVm(goal.name);
  if (vm === undefined) return undefined;
  const image = vm.image_id === null ? undefined : await host.store.findImage(vm.image_id);
  const build = image?.build_id == null ? undefined : await host.store.findBuild(image.build_id);
  if (build !== undefined && build.template_id === (await templateOf(host, goal))?.id) return vm;
  throw new Fault('exists', `VM '${goal.name}' exists already, and is not of ${goal.rootfs}.`, {
    hint: 'choose another name: --name …',
  });
};

export const STEPS: readonly Step[] = [
  {
    what: 'kernel',
    will: () => 'download the newest of the default provider',
    look: async host => {
      const kernel = await usualAsset(host, 'kernel');
      return kernel && { id: kernel.id, detail: kernel.version };
    },
    make: async (host, _goal, job, temp) => fetchOrder(host, 'kernel', await orderOf(host, 'kernel', {}), job, temp),
  },
  {
    what: 'rootfs',
    will: ({ rootfs }) => `download ${rootfs}`,
    look: async (host, { rootfs }) => {
      const found = await host.store.assets.rootfs.find(rootfs);
      return found && { id: found.id, detail: `${found.distro}:${found.version}` };
    },
    make: async (host, { rootfs: source }, job, temp) => (await obtain(host, job, { source, sha256: null }, temp)).id,
  },
  {
    what: 'template',
    will: ({ template, rootfs }) => `create '${template}' of ${rootfs}`,
    look: async (host, goal) => {
      const template = await templateOf(host, goal);
      return template && { id: template.id, detail: `'${template.name}', version ${template.version}` };
    },
    make: async (host, { template: name, rootfs: source }) => {
      const template = newTemplate({
        name,
        source,
        source_type: 'rootfs',
        overlays: [],
        environment: {},
        init: 'auto',
      });
      await host.step('template.insert', () => host.store.insertTemplate(template));
      return template.id;
    },
  },
  {
    what: 'image',
    will: ({ template }) => `build '${template}'`,
    look: async (host, goal) => {
      const image = await imageOf(host, goal);
      return image && { id: image.id, detail: `'${image.name}'` };
    },
    make: async (host, { template }, job) => buildWith(host, await needTemplate(host, template), job),
  },
  {
    what: 'vm',
    will: ({ name }) => `create '${name}'`,
    look: async (host, goal) => {
      const vm = await vmOf(host, goal);
      return vm && { id: vm.id, detail: `'${vm.name}'` };
    },
    make: async (host, { name, template, input }) => {
      const { vcpus, memory_mib, root_size_bytes } = input;
      const asked = vmOps['vm.create'].input.parse({ name, image: template, vcpus, memory_mib, root_size_bytes });
      return (await createVm(host, asked)).id;
    },
  },
  {
    what: 'start',
    will: ({ name }) => `start '${name}' and wait for its guest`,
    look: async (host, goal) => {
      const vm = await vmOf(host, goal);
      return vm !== undefined && isReady(vm) ? { id: vm.id, detail: 'its guest is ready' } : undefined;
    },
    make: async (host, { name, input: { timeout_ms }, actor }) => {
      const vm = await needVm(host, name);
      if (vm.state === 'running') await waitVm(host, vm.id, 'ready', timeout_ms);
      else await startVm(host, vm.id, { wait: 'ready', timeout_ms, actor });
      return vm.id;
    },
  },
];

/** The steps, and which of them are done. */
export const planUp = async (host: Host, input: Pick<UpInput, 'rootfs' | 'name'>): Promise<UpStep[]> => {
  const goal = goalOf(input);
  const steps: UpStep[] = [];
  for (const [n, { what, will, look }] of STEPS.entries()) {
    const found = await look(host, goal);
    const { id = null, detail = will(goal) } = found ?? {};
    steps.push({ step: n + 1, what, done: found !== undefined, detail, id });
  }
  return steps;
};

/** Starts the job that does them; what can be refused is refused now. */
export const startUp = async (host: Host, input: UpInput, actor: string): Promise<Job> => {
  const goal = goalOf(input);
  await checkSource(host, { source: input.rootfs, source_type: 'rootfs', sha256: null });
  await planUp(host, input);
  return host.jobs.start({ kind: 'vm.up', subject: goal.name, input }, job =>
    inTemp(host, job.job_id, temp => goUp(host, STEPS, { ...goal, input, actor }, job, temp)),
  );
};

/** Does what of these steps is not done; gives the ID of what the last one makes. */
export const goUp = async (
  host: Host,
  steps: readonly Step[],
  goal: Goal & { input: UpInput; actor: string },
  job: JobContext,
  temp: string,
): Promise<string> => {
  let last = '';
  for (const [n, { what, will, look, make }] of steps.entries()) {
    job.signal.throwIfAborted();
    const found = await look(host, goal);
    job.log(`${n + 1}. ${what}: ${found === undefined ? will(goal) : `${found.detail} is there`}`);
    if (found === undefined) job.progress({ stage: what, done: n, total: steps.length, unit: 'steps' });
    last = found?.id ?? (await make(host, goal, job, temp));
  }
  return last;
};

/** A build of its own, whose log and progress are told on. Canceled with the job that asked for it. */
const buildWith = async (host: Host, template: Template, job: JobContext): Promise<string> => {
  const { build } = await buildTemplate(host, template);
  const cancel = () => void host.jobs.cancel(build.job_id).catch(() => {}); // it may have ended
  job.signal.addEventListener('abort', cancel, { once: true });
  try {
    if (job.signal.aborted) cancel();
    for await (const message of host.jobs.log(build.job_id, host.closing)) {
      if (message.type === 'log') job.log(message.line);
      if (message.type === 'progress') job.progress(message.progress);
    }
    const { state, error, result_id } = await host.jobs.ended(build.job_id);
    job.signal.throwIfAborted();
    if (state === 'succeeded' && result_id !== null) return result_id;
    throw new Fault(error?.code ?? 'internal', error?.detail ?? `Build '${build.id}' was ${state}.`, {
      hint: error?.hint,
    });
  } finally {
    job.signal.removeEventListener('abort', cancel);
  }
};
