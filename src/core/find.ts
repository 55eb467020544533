/** References to records: a name or an ID, or a fault that says how to find the right one. */
import { type AssetKind, bareVersion } from '../api/asset.ts';
import type { Build } from '../api/build.ts';
import type { FaultCode } from '../api/fault.ts';
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import type { Kernel } from '../api/kernel.ts';
import type { Provider } from '../api/provider.ts';
import type { Rootfs } from '../api/rootfs.ts';
import type { Template } from '../api/template.ts';
import type { Vm } from '../api/vm.ts';
import { VM_VERBS, type VmVerb } from '../api/vm_state.ts';
import type { Workspace } from '../api/ws.ts';
import type { Held } from '../lib/lock.ts';
import type { AssetOf, VmRecord } from '../store/store.ts';
import type { Host } from './host.ts';

const missing = (noun: string, ref: string, list: string, code: FaultCode = 'not_found'): Fault =>
  new Fault(code, `There is no ${noun} '${ref}'.`, { hint: list });

export const needVm = async (host: Host, ref: string): Promise<VmRecord> => {
  const vm = await host.store.findVm(ref);
  if (vm === undefined) throw missing('VM', ref, 'nexusctl vm list');
  return vm;
};

export const needWs = async (host: Host, ref: string): Promise<Workspace> => {
  const ws = await host.store.findWs(ref);
  if (ws === undefined) throw missing('workspace', ref, 'nexusctl ws list');
  return ws;
};

const LISTS: Record<AssetKind, readonly [noun: string, list: string]> = {
  kernel: ['kernel', 'nexusctl kernel list'],
  rootfs: ['root file system', 'nexusctl rootfs list'],
  firecracker: ['Firecracker', 'nexusctl firecracker list'],
};

/** A kernel, an archive or a Firecracker: by ID, version (`v1.12.0` too) or series. */
export const needAsset = async <K extends AssetKind>(host: Host, kind: K, ref: string): Promise<AssetOf[K]> => {
  const asset = await host.store.assets[kind].find(kind === 'rootfs' ? ref : bareVersion(ref));
  if (asset !== undefined) return asset;
  const [noun, list] = LISTS[kind];
  const [distro, version] = ref.split(':');
  throw missing(noun, ref, kind === 'rootfs' && version ? `nexusctl rootfs download ${distro} ${version}` : list);
};

export const needKernel = (host: Host, ref: string): Promise<Kernel> => needAsset(host, 'kernel', ref);
export const needRootfs = (host: Host, ref: string): Promise<Rootfs> => needAsset(host, 'rootfs', ref);

export const needProvider = async (host: Host, ref: string): Promise<Provider> => {
  const provider = await host.store.findProvider(ref);
  if (provider === undefined) throw missing('provider', ref, 'nexusctl provider list');
  return provider;
};

export const needTemplate = async (host: Host, ref: string): Promise<Template> => {
  const template = await host.store.findTemplate(ref);
  if (template === undefined) throw missing('template', ref, 'nexusctl template list');
  return template;
};

export const needBuild = async (host: Host, ref: string): Promise<Build> => {
  const build = await host.store.findBuild(ref);
  if (build === undefined) throw missing('build', ref, 'nexusctl build list');
  return build;
};

/** By name or ID, or the newest of a template. */
export const needImage = async (host: Host, ref: string): Promise<Image> => {
  const image = await host.store.findImage(ref);
  if (image !== undefined) return image;
  const template = await host.store.findTemplate(ref);
  if (template === undefined) throw missing('image', ref, 'nexusctl image list');
  throw new Fault('not_found', `Template '${template.name}' has no image yet.`, {
    hint: `nexusctl build trigger ${template.name}`,
  });
};

/** What a verb does, as completes "Cannot … VM 'web'". */
export const VERB_TEXT: Record<VmVerb, string> = {
  start: 'start',
  stop: 'stop',
  restart: 'restart',
  pause: 'pause',
  resume: 'resume',
  delete: 'delete',
  exec: 'run a command in',
  files: 'reach the files of',
  attach: 'change the disks of',
};

const hintFor = (vm: Vm, verb: VmVerb): string | undefined => {
  if (verb === 'exec' || verb === 'files')
    return `nexusctl vm ${vm.state === 'paused' ? 'resume' : 'start'} ${vm.name}`;
  if (verb === 'attach') return `nexusctl vm stop ${vm.name}`;
  if (verb === 'start' && vm.state === 'paused') return `nexusctl vm resume ${vm.name}`;
  return undefined;
};

/** Admission: throws `bad_state` unless the table allows the verb. */
export const admit = (vm: Vm, verb: VmVerb): void => {
  if (VM_VERBS[verb].includes(vm.state)) return;
  const is = vm.state === 'created' ? 'it was never started' : `it is ${vm.state}`;
  throw new Fault('bad_state', `Cannot ${VERB_TEXT[verb]} VM '${vm.name}': ${is}.`, { hint: hintFor(vm, verb) });
};

export const busy = (vm: Vm, verb: VmVerb, holder: string): Fault =>
  new Fault('busy', `Cannot ${VERB_TEXT[verb]} VM '${vm.name}': ${holder} is at work on it.`, {
    hint: `wait for it, or end it with nexusctl vm stop ${vm.name}`,
  });

/** Takes the VM's lock for a verb that makes nobody let go: `busy`, with the holder's name, where somebody has it. */
export const lockVm = async (host: Host, { id }: { id: string }, verb: VmVerb, name = `vm.${verb}`): Promise<Held> => {
  const held = host.locks.tryTake(id, name);
  if (held !== undefined) return held;
  const holder = host.locks.holder(id) ?? 'another operation';
  throw busy(await needVm(host, id), verb, holder);
};

/** What a client may see of a VM. */
export const publicVm = (record: VmRecord): Vm => {
  const { run: _run, host_uid: _uid, env: _env, provision_run: _provision, ...vm } = record;
  return vm;
};

/** The VMM knows the ID alone; people know the name. */
export const named = (vm: VmRecord, error: unknown): unknown =>
  error instanceof Fault && error.message.includes(vm.id)
    ? new Fault(error.code, error.message.replaceAll(vm.id, `'${vm.name}'`), { hint: error.hint, cause: error })
    : error;
