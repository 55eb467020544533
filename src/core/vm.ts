import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { VmFilter } from '../store/store.ts';
import { updateAgent } from './agent.ts';
import { holdVm } from './ephemeral.ts';
import { needVm, publicVm } from './find.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { inspectVm } from './inspect.ts';
import { vmLogs } from './logs.ts';
import { withNotice } from './notice.ts';
import { pauseVm, resumeVm } from './pause.ts';
import { restartVm } from './restart.ts';
import { startVm } from './start.ts';
import { deleteVm, stopVm } from './stop.ts';
import { vmTop } from './top.ts';
import { planUp, startUp } from './up.ts';
import { createVm } from './vm_create.ts';
import { waitVm } from './wait.ts';

export const vmHandlers = (host: Host): HandlersOf<'vm'> => ({
  'vm.create': (_ctx, input) => createVm(host, input),
  'vm.list': async (_ctx, input) => (await host.store.listVms(filterOf(input))).map(publicVm),
  'vm.update': async (_ctx, { vm, ...changes }) => {
    const { id } = await needVm(host, vm);
    const given = Object.entries(changes).filter(([, value]) => value !== undefined);
    if (given.length === 0) throw new Fault('invalid', `Cannot update VM '${vm}': no change was given.`);
    return publicVm(await host.store.patchVm(id, Object.fromEntries(given)));
  },
  'vm.get': async (_ctx, input) => publicVm(await needVm(host, input.vm)),
  'vm.start': async (ctx, { vm, wait, timeout_ms }) =>
    withNotice(host, await startVm(host, vm, { wait, timeout_ms, actor: ctx.actor })),
  'vm.stop': (ctx, { vm, force, timeout_ms }) =>
    stopVm(host, vm, { force, timeout_ms, actor: ctx.actor, again: false }),
  'vm.restart': async (ctx, { vm, ...options }) =>
    withNotice(host, await restartVm(host, vm, { ...options, actor: ctx.actor })),
  'vm.pause': (ctx, { vm }) => pauseVm(host, vm, ctx.actor),
  'vm.resume': (ctx, { vm }) => resumeVm(host, vm, ctx.actor),
  'vm.wait': (_ctx, { vm, for: wanted, timeout_ms }) => waitVm(host, vm, wanted, timeout_ms),
  'vm.delete': async (_ctx, { vm, keep_disk }) => {
    await deleteVm(host, vm, { keep_disk });
    return {};
  },
  'vm.hold': async (ctx, { vm }) => holdVm(host, await needVm(host, vm), ctx.signal),
  'vm.history': async (_ctx, { vm, limit }) => host.store.vmHistory((await needVm(host, vm)).id, limit),
  'vm.up': (ctx, input) => startUp(host, input, ctx.actor),
  'vm.up_plan': (_ctx, input) => planUp(host, input),
  'vm.update_agent': (ctx, { vm }) => updateAgent(host, vm, ctx.signal),
  'vm.inspect': (_ctx, { vm }) => inspectVm(host, vm),
  'vm.top': async (ctx, input) => vmTop(host, input, AbortSignal.any([ctx.signal, host.closing])),
  'vm.logs': async (ctx, input) => vmLogs(host, await needVm(host, input.vm), input, ctx.signal),
});

const filterOf = ({ state, tag }: OpIn<'vm.list'>): VmFilter => ({
  ...(state === undefined ? {} : { state }),
  ...(tag === undefined ? {} : { tags: tag }),
});
